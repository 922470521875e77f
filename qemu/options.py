"""The options `qemu/run` and `qemu/shell` share."""

import pathlib

import guest
import parts


def add(parser):
    first = guest.Namespace()
    shape = parser.add_argument_group("first namespace")
    shape.add_argument("--zones", type=int, default=first.zones, help="number of zones [%(default)s]")
    shape.add_argument("--zone-size", type=guest.size, default=first.zone_size, metavar="SIZE", help="[64M]")
    shape.add_argument("--zone-capacity", type=guest.size, default=0, metavar="SIZE", help="[the zone size]")
    shape.add_argument("--max-open", type=int, default=first.max_open, metavar="N", help="[%(default)s]")
    shape.add_argument("--max-active", type=int, default=first.max_active, metavar="N", help="[%(default)s]")
    shape.add_argument("--block-size", type=int, default=first.block_size, metavar="BYTES", help="[%(default)s]")
    shape.add_argument("--image", type=pathlib.Path, help="file of the namespace, kept; made where there is none")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--namespace", action="append", default=[], metavar="KEY=VALUE,..",
                         help="one more namespace: zones, zone-size, zone-capacity, max-open, max-active, block-size; "
                              "conventional=1: of that size and without zones")
    machine.add_argument("--memory", default="2G", metavar="SIZE", help="[2G]")
    machine.add_argument("--prealloc", action="store_true", help="take all memory from the host before the guest starts")
    machine.add_argument("--mdts", type=int, default=7, metavar="N", help="largest transfer: 4 KiB << N [7]")
    machine.add_argument("--zasl", type=int, default=0, metavar="N", help="largest append: 4 KiB << N [as transfers]")
    machine.add_argument("--module", action="append", default=[], metavar="NAME", help="one more kernel module")
    machine.add_argument("--iommu", action="store_true", help="an IOMMU, for drivers in user space")
    machine.add_argument("--file", action="append", default=[], metavar="GUEST=HERE",
                         help="one more file in the guest; programs are stripped")
    machine.add_argument("--share", type=pathlib.Path, metavar="DIR", help="a directory both sides write: /share")
    machine.add_argument("--host-root", action="store_true",
                         help="run the script in this machine's own root, read-only (share: /run/share)")
    machine.add_argument("--profile", choices=["release", "dev"], default="release", help="how warren is built")
    machine.add_argument("--log", type=pathlib.Path, metavar="FILE", help="keep the guest's console")


def machine(arguments):
    """The machine that the options describe."""
    parts.need_programs()
    first = guest.Namespace(arguments.zones, arguments.zone_size, arguments.zone_capacity, arguments.max_open,
                            arguments.max_active, arguments.block_size, image=arguments.image)
    files = {"usr/local/bin/warren": parts.warren(arguments.profile)}
    for pair in arguments.file:
        inside, separator, here = pair.partition("=")
        if not separator:
            raise ValueError(f"--file {pair}: GUEST=HERE is needed")
        files[inside.lstrip("/")] = pathlib.Path(here)
    return guest.Machine(
        namespaces=[first, *map(guest.Namespace.parse, arguments.namespace)], files=files,
        modules=tuple(arguments.module), memory=arguments.memory, mdts=arguments.mdts, zasl=arguments.zasl,
        share=arguments.share, host_root=arguments.host_root, prealloc=arguments.prealloc, iommu=arguments.iommu, log=arguments.log)
