"""The native seam, typed; a test holds it against what the module really exports."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from typing_extensions import Buffer

_Array: TypeAlias = ffi.CData | Sequence[int]
_Bytes: TypeAlias = ffi.CData | bytes

class ffi:
    class CData:
        # A struct's fields, as the C declarations name and type them.
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    NULL: CData
    @staticmethod
    def new(cdecl: str, init: object = ...) -> CData: ...
    @staticmethod
    def gc(cdata: CData, destructor: Callable[[CData], None]) -> CData: ...
    @staticmethod
    def buffer(cdata: CData, size: int = ...) -> memoryview: ...
    @staticmethod
    def from_buffer(cdecl_or_buffer: str | Buffer, buffer: Buffer = ...) -> CData: ...

class lib:
    MEMCG_BATCH: int
    MEMCG_STEP_CGROUP: int
    MEMCG_STEP_CONTROL_FILE: int
    MEMCG_STEP_EVENTFD: int
    MEMCG_STEP_EVENT_CONTROL: int
    MEMCG_STEP_WRITE: int
    @staticmethod
    def memcg_register(cgroup: _Bytes, control_file: _Bytes, argument: _Bytes, registration: ffi.CData) -> int: ...
    @staticmethod
    def memcg_register_many(device: int, paths: _Bytes, count: int, registrations: ffi.CData) -> int: ...
    @staticmethod
    def memcg_unregister_many(registrations: ffi.CData) -> None: ...
    @staticmethod
    def memcg_loop_add(epoll_fd: int, keys: _Array, count: int) -> int: ...
    @staticmethod
    def memcg_wait(epoll_fd: int, timeout_ms: int, batch: ffi.CData) -> int: ...
    @staticmethod
    def memcg_timer_open() -> int: ...
    @staticmethod
    def memcg_timer_arm(timer_fd: int, deadline_ns: int) -> int: ...
    @staticmethod
    def memcg_open_by_id(mount_fd: int, id: int) -> int: ...
    @staticmethod
    def memcg_look_many(
        mount_fd: int, device: int, control_ids: _Array, paths: _Bytes, count: int, kills: ffi.CData
    ) -> None: ...
    @staticmethod
    def memcg_moved_many(device: int, directory_ids: _Array, paths: _Bytes, count: int, moved: ffi.CData) -> None: ...
