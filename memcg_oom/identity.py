"""Whose a cgroup is, as far as its path alone tells: the unit, user, container, pod or machine it was made for.

The forms are those of the programs that make the cgroups (systemd, the container runtimes, the kubelet, libvirt). They
are names, not proof: who may make cgroups below his own can give them any name.
"""

from __future__ import annotations

from memcg_oom.record import Record

_set = object.__setattr__

_DIGITS = "0123456789"
_HEX = "0123456789abcdef"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_NAME_MAX = 255

# The kinds of systemd's units that have cgroups, and the letters of their names (VALID_CHARS in unit-name.c).
_KINDS = ("service", "scope", "slice", "socket", "mount", "swap")
_UNIT_LETTERS = _DIGITS + _LOWER + _LOWER.upper() + ":-_.\\@"

_QOS = {"besteffort": "BestEffort", "burstable": "Burstable"}

# What stands before an id ("docker-ID.scope", "crio-ID", "system.slice:docker:ID"), and whose it is.
_PREFIXES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
    "libpod-payload": "podman",
    "buildkit": None,
}
_MONITORS = {"crio-conmon": "cri-o", "libpod-conmon": "podman"}
# Which cgroups have bare ids right below them that are of one runtime only.
_PARENTS = {"docker": "docker", "k8s.io": "containerd"}
_BUILDERS = ("docker", "buildkit")
_DRIVERS = ("qemu", "lxc", "ch")
_OLD_DRIVERS = ("qemu", "lxc")


class Identity(Record):
    """Whose a cgroup is. Where things lie in one another, such as a pod in a container of kind, the innermost is told.

    Attributes:
        unit: the innermost systemd unit that is no slice, such as "ssh.service"; what systemd escapes in it is left so.
        slice: the innermost slice, such as "system.slice".
        user: the uid whose login or user manager it is in. Of those inside of containers nothing is told, because
            their uids are others than the host's.
        runtime: "docker", "containerd", "cri-o", "podman", "lxc", "libvirt" or "machined": what runs the container,
            or where there is none, the machine. None where the path does not say, as with the kubelet's cgroupfs
            driver. A monitor (conmon, lxc.monitor) has a runtime, but is not in the container that it looks after.
        container: the container's id; for LXC its name; for a step of a build in BuildKit, the step's id.
        pod: the uid of the Kubernetes pod, with dashes; that of a static pod has none. For Podman the id of its pod.
        qos: "Guaranteed", "Burstable" or "BestEffort": the class of the Kubernetes pod, or of the pods in it.
        machine: the name of the libvirt domain (with what machined cuts off missing), of the machine of
            systemd-machined, or the id of Firecracker's microVM.
    """

    __slots__ = ("unit", "slice", "user", "runtime", "container", "pod", "qos", "machine")
    unit: str | None
    slice: str | None
    user: int | None
    runtime: str | None
    container: str | None
    pod: str | None
    qos: str | None
    machine: str | None

    def __init__(
        self,
        *,
        unit: str | None = None,
        slice: str | None = None,
        user: int | None = None,
        runtime: str | None = None,
        container: str | None = None,
        pod: str | None = None,
        qos: str | None = None,
        machine: str | None = None,
    ) -> None:
        _set(self, "unit", unit)
        _set(self, "slice", slice)
        _set(self, "user", user)
        _set(self, "runtime", runtime)
        _set(self, "container", container)
        _set(self, "pod", pod)
        _set(self, "qos", qos)
        _set(self, "machine", machine)


def identify(path: str) -> Identity:
    """Whose the cgroup is, by its path alone; nothing is looked up, and no text is an error.

    Synchronization: a pure function, for any thread.

    Args:
        path: absolute, or as the kernel says it (/proc/PID/cgroup). Where it is mounted does not matter.
    """
    walk = _Walk()
    above = parent = ""
    for name in path.split("/"):
        if name in ("", ".", ".."):  # the kernel says "/.." of what is outside of the reader's cgroup namespace
            continue
        own_choice = len(name) > _NAME_MAX or walk.step(name, parent, above)
        # A container may be called "docker": what is in it is no container of Docker for that.
        above, parent = parent, "" if own_choice else name
    return walk.identity()


class _Walk:
    """What the names of a path have told so far, from the outermost on."""

    __slots__ = ("container", "hypervisor", "machine", "pod", "qos", "runtime", "slice", "unit", "user")

    def __init__(self) -> None:
        self.unit: str | None = None
        self.slice: str | None = None
        self.user: int | None = None
        self.runtime: str | None = None
        self.container: str | None = None
        self.pod: str | None = None
        self.qos: str | None = None
        self.machine: str | None = None
        self.hypervisor: str | None = None

    def identity(self) -> Identity:
        runtime = self.hypervisor if self.container is None and self.runtime is None else self.runtime
        return Identity(
            unit=self.unit,
            slice=self.slice,
            user=self.user,
            runtime=runtime,
            container=self.container,
            pod=self.pod,
            qos=self.qos,
            machine=self.machine,
        )

    def step(self, name: str, parent: str, above: str) -> bool:
        """Takes in the next name; returns whether somebody has chosen it freely, so that it may look like anything."""
        if self._lxc(name, parent, above) or self._guest(name, parent, above):
            return True
        kind = _kind_of_unit(name)
        if kind:
            self._systemd(name, kind)
        if parent == "libpod_parent" and _is_id(name):  # Podman's pods, with its cgroupfs manager
            self._enter_pod(name, None)
            return False
        self._kubernetes(name, parent, above)
        self._container(name, parent, above)
        return False

    def _enter(self, runtime: str | None, container: str) -> None:
        self.runtime, self.container = runtime, container

    def _enter_pod(self, pod: str, qos: str | None) -> None:
        # The container that a pod is in (a node of kind) is not one of the pod's.
        self.pod, self.qos, self.container, self.runtime = pod, qos, None, None

    def _monitor(self, runtime: str | None) -> None:
        if self.container is None:
            self.runtime = runtime

    def _enter_machine(self, runtime: str | None, machine: str | None) -> None:
        if machine:
            self.hypervisor, self.machine = runtime, machine

    def _lxc(self, name: str, parent: str, above: str) -> bool:
        """LXC, LXD, Incus: lxc.payload.NAME (since 4.0), lxc.payload/NAME (3.1), lxc/NAME (before, and Proxmox)."""
        if parent == "lxc.payload" or (parent == "lxc" and above != "libvirt"):
            self._enter("lxc", name)
        elif name.startswith("lxc.payload.") and name != "lxc.payload.":
            self._enter("lxc", name[len("lxc.payload.") :])
        elif parent == "lxc.monitor" or (name.startswith("lxc.monitor.") and name != "lxc.monitor."):
            self._monitor("lxc")
        else:
            return False
        return True

    def _guest(self, name: str, parent: str, above: str) -> bool:
        """Machines without a unit of systemd's: libvirt's (virCgroupNewPartition(), or older), Firecracker's jailer."""
        if above == "libvirt" and parent in _DRIVERS:
            self._enter_machine("libvirt", name)
            return True
        stem, _, driver = name.rpartition(".libvirt-")
        if stem and driver in _DRIVERS:
            stem = stem.removeprefix("_")  # virCgroupPartitionEscape()
            # Before there was a number in it, the stem was the domain's name, without the driver's.
            self._enter_machine("libvirt", _numbered_domain(stem) or stem)
            return True
        if parent == "firecracker" and len(name) <= 64 and not name.strip(_DIGITS + _LOWER + _LOWER.upper() + "-"):
            self._enter_machine(None, name)
            return True
        return False

    def _systemd(self, name: str, kind: str) -> None:
        # Only the first counts, and only outside of other units: in its own a service, or a user, makes what it likes.
        if self.user is None and not (self.unit or self.container or self.pod or self.machine):
            if kind == "slice" and name.startswith("user-"):
                self.user = _uid(name[len("user-") : -len(".slice")])
            elif kind == "service" and name.startswith("user@"):
                self.user = _uid(name[len("user@") : -len(".service")])
        unescaped = name.removeprefix("_")  # cg_unescape()
        if kind == "slice":
            self.slice = unescaped
        else:
            self.unit = unescaped
        if kind == "service" and name.startswith(("systemd-nspawn@", "systemd-vmspawn@")):
            self._enter_machine("machined", _unescape(name[: -len(".service")].partition("@")[2]))
        elif kind == "scope" and name.startswith("machine-"):
            machine = _unescape(name[len("machine-") : -len(".scope")])
            domain = _domain(machine) if machine else None
            self._enter_machine("libvirt" if domain else "machined", domain or machine)

    def _kubernetes(self, name: str, parent: str, above: str) -> None:
        """The kubelet's cgroups, by either driver, and the slices of Podman's pods."""
        # A runtime that takes "SLICE:PREFIX:ID" for a name makes a cgroup that is called so.
        slice_name, _, _ = name.partition(":")
        if slice_name.endswith(".slice"):
            steps = slice_name[: -len(".slice")].split("-")
            above, parent, name = ["", "", *steps][-3:]
            parent, above = parent.removeprefix("kata_"), above.removeprefix("kata_")
            if name.startswith("libpod_pod_") and _is_id(name[len("libpod_pod_") :]):
                self._enter_pod(name[len("libpod_pod_") :], None)
                return
            name = name.replace("_", "-") if name.startswith("pod") else name
        if parent == "kubepods" and name in _QOS:
            if self.pod is None:
                self.qos = _QOS[name]
        elif name.startswith("pod") and _is_pod_uid(name[len("pod") :]):
            if parent == "kubepods":
                self._enter_pod(name[len("pod") :], "Guaranteed")
            elif above == "kubepods" and parent in _QOS:
                self._enter_pod(name[len("pod") :], _QOS[parent])

    def _container(self, name: str, parent: str, above: str) -> None:
        bare = name.removeprefix("kata_")
        parts = bare.split(":")
        if len(parts) == 3:
            _, prefix, id_ = parts
        else:
            prefix, _, id_ = bare.removesuffix(".scope").rpartition("-")
        if prefix in _MONITORS and _is_id(id_):
            self._monitor(_MONITORS[prefix])
        elif prefix in _PREFIXES and (_is_id(id_) or (prefix in _BUILDERS and _is_build(id_))):
            self._enter(_PREFIXES[prefix], id_)
        elif _is_id(bare):
            # docker/buildx is where buildx puts its builders
            self._enter("docker" if (above, parent) == ("docker", "buildx") else _PARENTS.get(parent), bare)
        elif parent == "buildkit" and _is_build(bare):
            self._enter(_PARENTS.get(above), bare)
        elif bare == "conmon" and "libpod_parent" in (parent, above):
            self._monitor("podman")


def _kind_of_unit(name: str) -> str:
    """Such as "service", or "" of what is no unit's name (unit_name_is_valid(), slice_name_is_valid())."""
    stem, _, kind = name.rpartition(".")
    if kind not in _KINDS or not stem or stem.strip(_UNIT_LETTERS):
        return ""
    if stem.find("@") in (0, len(stem) - 1):  # without a name, or a template
        return ""
    if kind == "slice" and ("@" in stem or "--" in stem or stem.startswith("-") or stem.endswith("-")):
        return ""
    return kind


def _uid(text: str) -> int | None:
    """As parse_uid() of systemd; 65535 and 4294967295 are nobody's."""
    if not text or text.strip(_DIGITS) or (text[0] == "0" and text != "0"):
        return None
    uid = int(text)
    return uid if uid < 0xFFFFFFFF and uid != 0xFFFF else None


def _is_id(text: str) -> bool:
    return len(text) == 64 and not text.strip(_HEX)


def _is_build(text: str) -> bool:
    """Whether it is an id of BuildKit's (identity.NewID()): a number in base 36."""
    return len(text) == 25 and not text.strip(_DIGITS + _LOWER) and bool(text.strip(_LOWER))


def _is_pod_uid(text: str) -> bool:
    if len(text) == 36:
        parts = text.split("-")
        return [len(part) for part in parts] == [8, 4, 4, 4, 12] and not "".join(parts).strip(_HEX)
    return len(text) == 32 and not text.strip(_HEX)


def _numbered_domain(machine: str) -> str | None:
    """The libvirt domain that a machine's name was made from (virDomainDriverGenerateMachineName()), if it was."""
    driver, _, rest = machine.partition("-")
    if rest.startswith("embed-") and not rest[6:14].strip(_HEX) and rest[14:15] == "-":
        rest = rest[15:]
    number, _, domain = rest.partition("-")
    return domain if driver in _DRIVERS and number and not number.strip(_DIGITS) and domain else None


def _domain(machine: str) -> str | None:
    """The same, also of libvirt up to 1.2, whose machines are called DRIVER-NAME, without a number."""
    driver, _, name = machine.partition("-")
    return _numbered_domain(machine) or (name if driver in _OLD_DRIVERS and name else None)


def _unescape(text: str) -> str | None:
    r"""Undoes systemd's \x2d; None where it is no escape, or no printable name.

    Args:
        text: of a unit's name, so of ASCII letters only.
    """
    first, *parts = text.split("\\x")
    raw = [first.encode()]
    for part in parts:
        if len(part) < 2 or part[:2].strip(_HEX):
            return None
        raw.append(bytes([int(part[:2], 16)]) + part[2:].encode())
    try:
        name = b"".join(raw).decode()
    except UnicodeDecodeError:
        return None
    return name if name.isprintable() else None
