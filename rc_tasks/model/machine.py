"""Machines by the kernel's name (uname -m), as Slurm's nodes and `arch` have them, and by Docker's."""

# Docker's architecture and variant for machine names of the kernel that differ.
DOCKER_NAMES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
}
# The variable that says on which machine an EDF for all machines is read.
VARIABLE = "IMAGE_MACHINE"
# The machines of which an image can be asked for.
KNOWN = ("aarch64", "x86_64", "ppc64le", "riscv64", "s390x")


def docker_name(machine: str) -> str:
    """Return Docker's name of a machine, such as amd64 for x86_64."""
    return DOCKER_NAMES.get(machine, (machine, ""))[0]


def platform(machine: str) -> str:
    """Return the platform of a machine, as `--platform` takes it."""
    return "/".join(("linux", *filter(None, DOCKER_NAMES.get(machine, (machine, "")))))


def parse_machine(raw: str) -> str:
    """Return a known machine. Raise ValueError with the name that is meant."""
    if raw in KNOWN:
        return raw
    meant = next((name for name in KNOWN if docker_name(name) == raw), None)
    if meant is not None:
        raise ValueError(f'"{raw}" is Docker\'s name; write "{meant}", as `uname -m` does')
    raise ValueError(f'"{raw}" is not one of {", ".join(KNOWN)}')


def image_name(name: str, machine: str) -> str:
    """Return the name of the image for a machine: `pytorch:25.06-aarch64`, or `pytorch:aarch64`."""
    return f"{name}{'-' if ':' in name else ':'}{machine}"


def without_machine(name: str, machine: str) -> str:
    """Return the name that `image_name` was given."""
    return name[: -len(machine) - 1]
