"""The keys that an ordinary domain's configuration has, and what each may say: the policy's list of what it lets pass.

After tools/libs/light/libxl_types.idl of xen.git, 4.14 to 4.22; the shape is that of libxl_domain_config as JSON. What is not here is refused
unless ``[policy] allow`` names it: keys that have root open, run or pass on something of the host's, and keys that a newer Xen has made.

Not here, though libxl has them:
    c_info        ssidref, ssid_label (a label of XSM's), xsdata, platformdata (written to XenStore by root)
    b_info        extra, extra_pv, extra_hvm (arguments of QEMU's), device_model_user, device_model_ssidref, device_model_ssid_label,
                  exec_ssidref, exec_ssid_label, stubdomain_kernel, stubdomain_ramdisk, stubdomain_cmdline, device_tree, bootloader_args (pygrub
                  writes where they say), bootloader_user, ioports, irqs, iomem; of hvm: firmware, system_firmware, smbios_firmware,
                  acpi_firmware; of pvh: pvshim_path; sdl.display, sdl.xauthority
    devices       pcidevs, usbdevs, dtdevs, rdms (the host's own); p9s (a folder of the host's), vtpms, virtios, pvcallsifs, vdispls, vsnds;
                  channels with a socket's path; COLO's settings of disks and network cards
    each device   backend_domname
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Rule(enum.Enum):
    """What the value of a key must be; ``proto/policy.py`` has a function for each."""

    FLAG = enum.auto()  # libxl_defbool or bool
    UNSET = enum.auto()  # the same, and not true
    NUMBER = enum.auto()
    WORD = enum.auto()  # an enumeration's, a model, an address: what no shell and no command line of QEMU's takes for more
    WORDS = enum.auto()  # several of them
    ADDRESSES = enum.auto()  # of hosts, spaces between
    TEXT = enum.auto()  # one line, for the guest alone
    ANY = enum.auto()  # numbers and lines in any order, for the hypervisor alone
    HERE = enum.auto()  # the domain that has the other end of a device: 0
    LISTEN = enum.auto()  # an address, and a display's number behind it
    NAME = enum.auto()
    MEMORY = enum.auto()
    VCPUS = enum.auto()
    DISK = enum.auto()
    BRIDGE = enum.auto()
    KERNEL = enum.auto()
    BOOTLOADER = enum.auto()
    SCRIPT = enum.auto()
    DEVICE_MODEL = enum.auto()


# A set: one of these words or numbers. A list: any number of what it holds. A mapping: an object with these keys or fewer.
Shape = Rule | frozenset[str] | frozenset[int] | list["Shape"] | Mapping[str, "Shape"]

_FLAG, _UNSET, _NUMBER, _WORD, _WORDS, _TEXT, _ANY = Rule.FLAG, Rule.UNSET, Rule.NUMBER, Rule.WORD, Rule.WORDS, Rule.TEXT, Rule.ANY
_BITMAP: Shape = [_NUMBER]
_TYPE = frozenset({"pv", "pvh", "hvm"})
_DEVICE: dict[str, Shape] = {"backend_domid": Rule.HERE, "devid": _NUMBER}
_VNC: Shape = {"enable": _FLAG, "listen": Rule.LISTEN, "passwd": _TEXT, "display": _NUMBER, "findunused": _FLAG}
_SDL: Shape = {"enable": _FLAG, "opengl": _FLAG}
_SPICE: Shape = {
    **dict.fromkeys(("enable", "disable_ticketing", "agent_mouse", "vdagent", "clipboard_sharing"), _FLAG),
    **dict.fromkeys(("port", "tls_port", "usbredirection"), _NUMBER),
    **dict.fromkeys(("host", "passwd", "image_compression", "streaming_video"), _WORD),
}
# What QEMU makes of them without opening anything of the host's: "host:", "file:", "/dev/…", "tcp:" are none of them.
_USB_DEVICE = frozenset({"tablet", "mouse", "keyboard"})
_SERIAL = frozenset({"pty", "null", "none"})

_NO_DOMID = frozenset({0, 0x7FF4, (1 << 32) - 1, (1 << 32) - 2})  # xen.h: DOMID_INVALID; libxl.h: INVALID_DOMID, RANDOM_DOMID
_ACTION = frozenset({"destroy", "restart", "rename_restart", "preserve", "soft_reset"})  # not to dump the guest's memory into dom0's files

CREATE_INFO: Shape = {
    "type": _TYPE,
    "name": Rule.NAME,
    **dict.fromkeys(("hap", "oos", "run_hotplug_scripts", "xend_suspend_evtchn_compat"), _FLAG),
    "domid": _NO_DOMID,  # the source's choice with "xl migrate -D" alone
    "poolid": frozenset({0}),  # xl sends a pool by name
    "uuid": _WORD,
    "pool_name": _WORD,
    "driver_domain": _UNSET,
    "passthrough": frozenset({"default", "disabled"}),
}

_SCHED_PARAMS: Shape = {
    "sched": _WORD,
    **dict.fromkeys(("vcpuid", "weight", "cap", "period", "budget", "extratime", "slice", "latency"), _NUMBER),
}

# Some of these stand outside of the union as well, or did in older releases.
_BOOT: dict[str, Shape] = {"kernel": Rule.KERNEL, "ramdisk": Rule.KERNEL, "cmdline": _TEXT, "bootloader": Rule.BOOTLOADER}

_PV: Shape = {**_BOOT, "slack_memkb": _NUMBER, "features": _TEXT, "e820_host": _UNSET}
_PVH: Shape = {"pvshim": _FLAG, "pvshim_cmdline": _TEXT, "pvshim_extra": _TEXT}
_HVM: Shape = {
    **dict.fromkeys(("pae", "apic", "acpi", "acpi_s3", "acpi_s4", "acpi_laptop_slate", "nx", "viridian", "hpet", "vpt_align"), _FLAG),
    **dict.fromkeys(("nographic", "usb", "vkb_device", "xen_platform_pci", "xen_platform_pci_bar_uc", "pirq"), _FLAG),
    **dict.fromkeys(("nested_hvm", "altp2m", "gfx_passthru"), _UNSET),
    **dict.fromkeys(("mmio_hole_memkb", "usbversion", "rdm_mem_boundary_memkb", "mca_caps"), _NUMBER),
    **dict.fromkeys(("bios", "timeoffset", "timer_mode", "hdtype", "keymap", "gfx_passthru_kind", "boot", "vendor_device"), _WORD),
    "viridian_enable": _BITMAP,
    "viridian_disable": _BITMAP,
    "vga": {"kind": _WORD},
    "vnc": _VNC,
    "sdl": _SDL,
    "spice": _SPICE,
    "soundhw": _WORD,
    "serial": _SERIAL,
    "serial_list": [_SERIAL],
    "usbdevice": _USB_DEVICE,
    "usbdevice_list": [_USB_DEVICE],
    "smbios": [{"key": _WORD, "value": _TEXT}],
    "ms_vm_genid": _ANY,
    "rdm": {"strategy": frozenset({"ignore"}), "policy": _WORD},
}

BUILD_INFO: Shape = {
    **_BOOT,
    "max_vcpus": Rule.VCPUS,
    "max_memkb": Rule.MEMORY,
    "target_memkb": Rule.MEMORY,
    **dict.fromkeys(("video_memkb", "shadow_memkb", "iommu_memkb", "stubdomain_memkb"), _NUMBER),
    **dict.fromkeys(("rtc_timeoffset", "event_channels", "vmtrace_buf_kb", "altp2m_count", "xenstore_feature_mask"), _NUMBER),
    **dict.fromkeys(("max_grant_frames", "max_maptrack_frames", "max_grant_version"), _NUMBER),
    **dict.fromkeys(("avail_vcpus", "cpumap", "nodemap", "llc_colors"), _BITMAP),
    "vcpu_hard_affinity": [_BITMAP],
    "vcpu_soft_affinity": [_BITMAP],
    **dict.fromkeys(("numa_placement", "localtime", "disable_migrate", "claim_mode", "acpi", "apic", "bootloader_restrict", "dm_restrict"), _FLAG),
    **dict.fromkeys(("device_model_stubdomain", "vpmu", "trap_unmapped_accesses"), _FLAG),
    "nested_hvm": _UNSET,
    **dict.fromkeys(("tsc_mode", "timer_mode", "blkdev_start"), _WORD),
    "device_model_version": frozenset({"unknown", "qemu_xen"}),  # the other one has support in stub domains alone: SUPPORT.md of xen.git
    "cpuid": _ANY,
    "vnuma_nodes": [{"memkb": _NUMBER, "distances": _BITMAP, "pnode": _NUMBER, "vcpus": _BITMAP}],
    "device_model": Rule.DEVICE_MODEL,
    "sched_params": _SCHED_PARAMS,
    "xenstore_quota": {"quota": [{"name": _WORD, "val": _NUMBER}]},
    "tee": frozenset({"none"}),
    "altp2m": frozenset({"disabled"}),
    "type": _TYPE,
    "type.pv": _PV,
    "type.pvh": _PVH,
    "type.hvm": _HVM,
    "arch_arm": {"gic_version": _WORD, "vuart": _WORD, "sve_vl": _WORD, "nr_spis": _NUMBER, "arm_sci": {"type": frozenset({"none"})}},
    "arch_x86": {"msr_relaxed": _FLAG},
}

_DISK: Shape = {
    **_DEVICE,
    "pdev_path": Rule.DISK,
    "script": Rule.SCRIPT,
    **dict.fromkeys(("vdev", "backend", "specification", "transport"), _WORD),
    "format": frozenset({"unknown", "raw", "empty"}),  # in the others the image itself names further files, and root's QEMU opens them
    # "removable" and the two beside it are numbers in libxl, though they mean true and false.
    **dict.fromkeys(("removable", "readwrite", "is_cdrom", "irq", "base"), _NUMBER),
    **dict.fromkeys(("direct_io_safe", "discard_enable", "trusted", "grant_usage"), _FLAG),
    **dict.fromkeys(("colo_enable", "colo_restore_enable"), _UNSET),
    "colo_port": _NUMBER,
}

_NIC: Shape = {
    **_DEVICE,
    "bridge": Rule.BRIDGE,
    "script": Rule.SCRIPT,
    **dict.fromkeys(("mtu", "rate_bytes_per_interval", "rate_interval_usecs"), _NUMBER),
    **dict.fromkeys(("model", "mac", "ifname", "nictype", "gatewaydev"), _WORD),
    "vlan": _WORDS,
    "ip": Rule.ADDRESSES,
    "trusted": _FLAG,
}

_KEYBOARD: Shape = {
    **_DEVICE,
    "backend_type": _WORD,
    "unique_id": _WORD,
    **dict.fromkeys(("feature_disable_keyboard", "feature_disable_pointer", "feature_abs_pointer", "feature_raw_pointer"), _FLAG),
    "feature_multi_touch": _FLAG,
    **dict.fromkeys(("width", "height", "multi_touch_width", "multi_touch_height", "multi_touch_num_contacts"), _NUMBER),
}

CONFIGURATION: Mapping[str, Shape] = {
    "c_info": CREATE_INFO,
    "b_info": BUILD_INFO,
    "disks": [_DISK],
    "nics": [_NIC],
    "vfbs": [{**_DEVICE, "vnc": _VNC, "sdl": _SDL, "keymap": _WORD}],
    "vkbs": [_KEYBOARD],
    "channels": [{**_DEVICE, "name": _WORD, "connection": frozenset({"unknown", "pty"}), "connection.pty": {}, "connection.unknown": {}}],
    "usbctrls": [{**_DEVICE, "type": _WORD, "version": _NUMBER, "ports": _NUMBER}],
    **dict.fromkeys(("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"), _ACTION),
}
