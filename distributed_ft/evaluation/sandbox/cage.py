"""`python -I -S cage.py MEMORY_MIB CPU_SECONDS FOLDER`: give up every right, then run FOLDER/program.py.

A script by itself: it imports nothing of this project, so that it starts at once. Linux on x86-64 and arm64.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

CAUGHT = 125
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

# --- Landlock (linux/landlock.h) -----------------------------------------------------------------------------------
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_RIGHTS_OF_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # 5 and later: with ioctl
_NET = 3  # bind and connect of TCP, from ABI 4 on
_SCOPES = 3  # abstract sockets and signals, from ABI 6 on

# --- seccomp (linux/seccomp.h, linux/filter.h) ---------------------------------------------------------------------
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_AND, _LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_GREATER, _RETURN = 0x54, 0x20, 0x15, 0x45, 0x35, 0x06
_THREAD = 0x00010000  # CLONE_THREAD

# number by machine: (x86-64, arm64); None where there is no such call
_FORBIDDEN = {
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "io_uring_setup": (425, 425),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "swapon": (167, 224),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setsid": (112, 157),
    "setpgid": (109, 154),
}
_SOCKETPAIR, _STREAM = (
    (53, 199),
    1,
)  # asyncio needs pairs; one of datagrams could write to any socket in the file system
_CLONE, _CLONE3 = (56, 220), (435, 435)
_OWN_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "tkill": (200, 130), "prlimit64": (302, 261)}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def main() -> None:
    memory, seconds, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    try:
        _limit(memory * 2**20, seconds)
        _drop_rights()
        _landlock(folder)
        _seccomp()
    except (OSError, KeyError) as error:
        print(f"this kernel cannot hold a program that is not trusted: {error}", flush=True)
        os._exit(CAUGHT)
    environment = {
        "HOME": folder,
        "TMPDIR": folder,
        "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
        "PYTHONHASHSEED": "0",  # sets in one order, so that the same program ends in the same way
    }
    os.execve(sys.executable, [sys.executable, "-s", "-P", "-S", "-B", "program.py"], environment)


def _limit(memory: int, seconds: int) -> None:
    """Bytes of address space, seconds of CPU time (the kernel's SIGKILL after them), files and their size."""
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 16 * 2**20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def _drop_rights() -> None:
    """No capability now, and none by whatever is executed; and an end when the driver has one."""
    _check(_LIBC.prctl(1, 9, 0, 0, 0), "PR_SET_PDEATHSIG")
    _check(_LIBC.prctl(38, 1, 0, 0, 0), "no_new_privs")
    _LIBC.prctl(47, 4, 0, 0, 0)  # no ambient capabilities
    for capability in range(64):
        _LIBC.prctl(24, capability, 0, 0, 0)  # out of the bounding set; refused where there is none to drop
    header, data = struct.pack("<Ii", 0x20080522, 0), b"\0" * 24
    _check(_LIBC.capset(header, data), "capset")


def _landlock(folder: str) -> None:
    abi = _LIBC.syscall(_CREATE, None, 0, 1)
    _check(abi, "Landlock (Linux 5.13 or later, with Landlock on)")
    handled = _RIGHTS_OF_ABI.get(abi, (1 << 16) - 1)
    attributes = struct.pack("<Q", handled)
    attributes += struct.pack("<Q", _NET) if abi >= 4 else b""
    attributes += struct.pack("<Q", _SCOPES) if abi >= 6 else b""
    rules = _LIBC.syscall(_CREATE, attributes, len(attributes), 0)
    _check(rules, "landlock_create_ruleset")
    reading = _EXECUTE | _READ_FILE | _READ_DIR
    for path in _readable():
        _allow(rules, path, reading & handled)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
        _allow(rules, device, _READ_FILE | (_WRITE_FILE if device == "/dev/null" else 0))
    _allow(rules, folder, handled & ~_EXECUTE)
    _check(_LIBC.syscall(_RESTRICT, rules, 0), "landlock_restrict_self")
    os.close(rules)


def _readable() -> list[str]:
    """Python, its libraries and the system's, and what the dynamic linker reads; no third-party packages' data."""
    real = os.path.dirname(os.path.realpath(sys.executable))
    libraries = [
        os.path.dirname(os.__file__),
        os.path.join(sys.base_prefix, "lib"),
        os.path.join(sys.prefix, "pyvenv.cfg"),
    ]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    named = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    return [os.path.dirname(sys.executable), real, *libraries, *system, *named]


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there cannot be read
    try:
        if not os.path.isdir(path):
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE
        _check(_LIBC.syscall(_ADD, rules, 1, struct.pack("<Qi", rights, opened), 0), f"Landlock's rule for {path}")
    finally:
        os.close(opened)


def _seccomp() -> None:
    """Refuse the calls above with EPERM: a program sees an OSError, not a crash."""
    machine, architecture = _MACHINES[platform.machine()]
    pid = os.getpid()
    refuse, missing = _statement(_RETURN, _ERRNO | _EPERM), _statement(_RETURN, _ERRNO | _ENOSYS)
    program = [
        _statement(_LOAD, 4),  # the architecture of the call
        _statement(_JUMP_EQUAL, architecture, 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, 0),  # its number
    ]
    if machine == 0:
        program += [_statement(_JUMP_GREATER, 0x40000000, 0, 1), _statement(_RETURN, _KILL)]  # x32 numbers
    for number in (numbers[machine] for numbers in _FORBIDDEN.values()):
        if number is not None:
            program += [_statement(_JUMP_EQUAL, number, 0, 1), refuse]
    program += [
        _statement(_JUMP_EQUAL, _CLONE3[machine], 0, 1),
        missing,
    ]  # its flags cannot be seen: clone is used then
    for name, numbers in _OWN_ONLY.items():
        if name == "tkill":
            program += [_statement(_JUMP_EQUAL, numbers[machine], 0, 1), refuse]
            continue
        program += [
            _statement(_JUMP_EQUAL, numbers[machine], 0, 5),
            _statement(_LOAD, 16),  # its first argument, the lower half
            _statement(_JUMP_EQUAL, pid, 2, 0),
            _statement(_JUMP_EQUAL, 0 if name == "prlimit64" else pid, 1, 0),
            refuse,
            _statement(_RETURN, _ALLOW),
        ]
    program += [
        _statement(_JUMP_EQUAL, _SOCKETPAIR[machine], 0, 5),
        _statement(_LOAD, 24),  # its type, the second argument, and flags
        _statement(_AND, 0xF),
        _statement(_JUMP_EQUAL, _STREAM, 1, 0),
        refuse,
        _statement(_RETURN, _ALLOW),
        _statement(_JUMP_EQUAL, _CLONE[machine], 0, 4),
        _statement(_LOAD, 16),  # its flags
        _statement(_JUMP_SET, _THREAD, 1, 0),
        refuse,
        _statement(_RETURN, _ALLOW),
        _statement(_RETURN, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    filters = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _check(_LIBC.prctl(22, 2, filters, 0, 0), "seccomp")


def _statement(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("HBBI", code, true, false, value)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
