"""A virtual machine with a kernel of Debian's, for as long as one command takes.

The kernel boots with an initramfs of busybox, this very Python, pytest, the package as built here, and its tests; or,
where systemd is to be in charge, of a small Debian. No disk, no network; always QEMU's own emulation, because a
/dev/kvm may exist and hang.

python -m tests.vm.machine: installs the programs that machines need, where that is possible.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"

# Pure Python but for cffi's backend, which is all that an API-mode module needs of cffi.
SITE_PACKAGES = (
    "memcg_oom",
    "pytest",
    "_pytest",
    "py",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "_cffi_backend",
    "prometheus_client",
)
# Where Debian has the newest kernel of a series. The last one is whatever is the newest of all.
SUITES = {
    "5.10": "bullseye",
    "6.1": "bookworm",
    "6.12": "trixie",
    "6.18": "trixie-backports",
    "newest": "trixie-backports",
}

# What a machine takes, and the Debian packages that have it; and what the Debian that systemd runs is built with.
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio"}
FOR_SYSTEMD = {"mmdebstrap": "mmdebstrap"}

# An emulated kernel was once seen to hang before its first word: after so many seconds without one it is booted again,
# and so many times in all.
SILENCE = 240.0
BOOTS = 3

UNUSED = ("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages", "dist-packages")

INIT = """\
#!/bin/sh
export PATH=/bin HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONHOME={prefix} MEMCG_OOM_HOG=/hog
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
mkdir -p /dev/shm /dev/pts; mount -t tmpfs shm /dev/shm; mount -t devpts pts /dev/pts
ulimit -n 20000
echo "up after $(cut -d' ' -f1 /proc/uptime) seconds"
case " $(cat /proc/cmdline) " in
*" cg=v1 "*)
  mount -t tmpfs cg /sys/fs/cgroup
  for c in memory pids; do mkdir /sys/fs/cgroup/$c; mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c; done
  mkdir /sys/fs/cgroup/unified; mount -t cgroup2 none /sys/fs/cgroup/unified;;
*) mount -t cgroup2 none /sys/fs/cgroup;;
esac
cd /work && sh /command; echo "EXIT-CODE=$?"
if [ -f /results ]; then stty raw < /dev/ttyS1; cat /results > /dev/ttyS1; fi
poweroff -f
"""

# What systemd starts as its last; the machine goes when it has ended.
UNIT = """\
[Unit]
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate
[Service]
Type=oneshot
WorkingDirectory=/work
Environment=PYTHONDONTWRITEBYTECODE=1 MEMCG_OOM_HOG=/hog LANG=C.UTF-8
StandardOutput=file:/dev/ttyS0
StandardError=inherit
ExecStart=/bin/sh -c 'sh /command; echo "EXIT-CODE=$$?"'
"""


def missing(programs: dict[str, str] = PROGRAMS) -> str:
    """Why no machine can be started here, or not one for which these programs are needed; empty where one can."""
    if os.uname().machine != "x86_64":
        return f"the kernels are for x86_64, not {os.uname().machine}"
    if shutil.which("apt-get") is None:
        return "the kernels come from Debian, through apt-get"
    packages = lacking(programs)
    return f"missing: apt-get install --no-install-recommends {' '.join(packages)}" if packages else ""


def lacking(programs: dict[str, str]) -> list[str]:
    """The packages of those programs that are not there."""
    return [package for program, package in programs.items() if shutil.which(program) is None]


def install() -> None:
    """Installs what is lacking, as far as this user and this system have it; what fails is said, and skips tests."""
    packages = lacking(PROGRAMS | FOR_SYSTEMD)
    if not packages or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    print(f"installing for virtual machines: {' '.join(packages)}", flush=True)
    for command in (("update",), ("install", "-y", "--no-install-recommends", *packages)):
        done = subprocess.run(
            ["apt-get", "-qq", *command],
            check=False,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.DEVNULL,
        )
        if done.returncode:
            print(f"apt-get {command[0]} failed: no virtual machines", file=sys.stderr)
            return


def kernel(series: str) -> Path:
    """The newest cloud kernel of a series, from the cache or Debian's mirror."""
    directory = CACHE / "kernels" / series
    subprocess.run([ROOT / "tools" / "kernel.sh", SUITES[series], series, directory], check=True)
    return directory / "vmlinuz"


def initramfs(target: Path, hog: str, wheel: Path | None = None) -> Path:
    """Packs the file system that every machine starts with; the package is in it as installed here, or from a wheel."""
    root = target / "root"
    for directory in ("bin", "proc", "sys", "dev", "tmp", "root", "etc", "work"):
        (root / directory).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin")
    for name in subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout.split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    shutil.copy(hog, root / "hog")
    for name in ("tests", "docs", "examples", "README.md", "pyproject.toml"):
        copy(ROOT / name, root / "work" / name)
    site_packages = _python(root)
    if wheel is not None:
        shutil.rmtree(site_packages / "memcg_oom")
        shutil.unpack_archive(wheel, site_packages, "zip")
    init = root / "init"
    init.write_text(INIT.format(prefix=sys.base_prefix))
    init.chmod(0o755)
    return pack(root, target / "base.cpio.gz")


def systemd_initramfs(target: Path, hog: str) -> Path:
    """Packs a Debian that systemd boots, with the package as installed here on cgroup v2."""
    debian = CACHE / "systemd" / "root.cpio.gz"
    subprocess.run([ROOT / "tools" / "systemd_root.sh", debian], check=True)
    root = target / "systemd"
    units = root / "etc" / "systemd" / "system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (units / "command.service").write_text(UNIT)
    (units / "multi-user.target.wants" / "command.service").symlink_to("../command.service")
    (units / "serial-getty@.service").symlink_to("/dev/null")
    copy(ROOT / "memcg_oom", root / "usr/lib/python3/dist-packages/memcg_oom")
    program = root / "usr" / "bin" / "memcg-oom"
    program.parent.mkdir()
    program.write_text("#!/usr/bin/python3\nfrom memcg_oom.command import main\nraise SystemExit(main())\n")
    program.chmod(0o755)
    shutil.copy(hog, root / "hog")
    for name in ("tests", "deploy"):
        copy(ROOT / name, root / "work" / name)
    exporter = find_spec("prometheus_client")
    assert exporter is not None
    assert exporter.origin is not None
    copy(Path(exporter.origin).parent, root / "usr/lib/python3/dist-packages/prometheus_client")
    extra = pack(root, target / "systemd-extra.cpio.gz")
    base = target / "systemd.cpio.gz"
    base.write_bytes(debian.read_bytes() + extra.read_bytes())
    return base


def _python(root: Path) -> Path:
    """Copies the interpreter and what the tests need, and runc if it is installed; returns where packages are."""
    executable = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    copy(library, root / library.relative_to("/"), ignore=UNUSED)
    inside = root / library.relative_to("/") / "site-packages"
    for name in SITE_PACKAGES:
        spec = find_spec(name)
        assert spec is not None, f"{name} is not installed"
        assert spec.origin is not None, f"{name} is no file"
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        copy(source, inside / source.name)
    shutil.copy(executable, root / "bin" / "python3")
    programs = [executable]
    if runc := shutil.which("runc"):
        shutil.copy(runc, root / "bin")
        programs.append(Path(runc))
    # The version of Python's shared library is in the interpreter's own list.
    objects = [*programs, *(root / library.relative_to("/")).rglob("*.so")]
    listed = subprocess.run(["ldd", *objects], check=False, capture_output=True, text=True).stdout
    for path in sorted(set(re.findall(r"(/\S+\.so[.\d]*) \(", listed))):
        if not path.startswith(str(root)):
            copy(Path(path), root / path.lstrip("/"))
    return inside


def copy(source: Path, target: Path, ignore: tuple[str, ...] = ()) -> None:
    """Copies a file or a folder, links as what they point to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*ignore, "__pycache__", "*.a"))
    else:
        shutil.copy(source, target)


def pack(root: Path, archive: Path) -> Path:
    pack = 'cd "$1" && find . | cpio -o -H newc --quiet | gzip -1 > "$2"'
    subprocess.run(["sh", "-c", pack, "sh", root, archive], check=True)
    return archive


def run(
    vmlinuz: Path,
    cgroups: str,
    base: Path,
    command: str,
    *,
    timeout: float = 600,
    memory: int = 1024,
    results: Path = Path(os.devnull),
    log: Path | None = None,
) -> tuple[int, str]:
    """Boots, runs a shell command in the folder with the tests, and returns its exit code and all that was printed.

    Args:
        vmlinuz: the kernel.
        cgroups: "v1" or "v2": which version has the memory controller.
        base: made by initramfs().
        command: for the shell.
        timeout: seconds after which the machine counts as hung.
        memory: the machine's, in MiB.
        results: where to put what the command leaves in /results.
        log: where to put what the machine prints, as it comes.
    """
    output, complaints = boot(vmlinuz, cgroups, base, command, timeout=timeout, memory=memory, results=results, log=log)
    code = re.search(r"^EXIT-CODE=(\d+)$", output, re.MULTILINE)
    assert code is not None, f"the machine died before it reported:\n{output}\n{complaints}"
    return int(code[1]), output


def boot(
    vmlinuz: Path,
    cgroups: str,
    base: Path,
    command: str,
    *,
    timeout: float,
    memory: int = 1024,
    results: Path = Path(os.devnull),
    log: Path | None = None,
) -> tuple[str, str]:
    """Boots, runs a shell command and waits for the machine's end, whichever; returns what it printed, and QEMU."""
    root = Path(tempfile.mkdtemp(prefix="command-", dir=base.parent))
    root.chmod(0o755)  # it becomes the machine's own /, which nobody could enter as it is made
    (root / "command").write_text(command + "\n")
    extra = pack(root, base.parent / f"{root.name}.cpio.gz")
    initrd = base.parent / f"{root.name}.initrd"
    initrd.write_bytes(base.read_bytes() + extra.read_bytes())
    log = log or base.parent / f"{root.name}.log"
    command_line: list[str | Path] = [
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", str(memory)),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-serial", f"file:{results}"),
        *("-kernel", vmlinuz, "-initrd", initrd),
        *("-append", f"console=ttyS0 quiet panic=-1 psi=1 cg={cgroups} "),
    ]
    for _ in range(BOOTS):
        complaints = _run_qemu(command_line, log, timeout)
        if complaints is not None:
            break
    else:
        raise subprocess.TimeoutExpired(command_line, SILENCE)
    initrd.unlink()
    return log.read_bytes().decode(errors="replace").replace("\r", ""), complaints.decode(errors="replace")


def _run_qemu(command_line: list[str | Path], log: Path, timeout: float) -> bytes | None:
    """Runs a machine to its end; returns what QEMU complained of, or None where the kernel did not come up."""
    with (
        log.open("wb") as out,
        subprocess.Popen(command_line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE) as qemu,
    ):
        try:
            try:
                return qemu.communicate(timeout=min(SILENCE, timeout))[1]
            except subprocess.TimeoutExpired:
                if not log.stat().st_size:
                    return None
            return qemu.communicate(timeout=timeout)[1]
        finally:
            qemu.kill()


if __name__ == "__main__":
    install()
