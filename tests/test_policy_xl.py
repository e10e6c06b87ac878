"""The policy and real configurations: xl.cfg files of ordinary and of hostile guests, made libxl's JSON by Debian's xl with the real libxl."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Host
from tests.xl.dryrun import dry_xl
from xensecure.destination.admission import judge_domain
from xensecure.link.config import load_config
from xensecure.proto.errors import RefusedError

HVM = """\
type = "hvm"
memory = 1024
maxmem = 2048
vcpus = 2
cpus = "0"
disk = ["phy:/dev/vg0/web1,xvda,w", "file:/srv/iso/debian 12.iso,hdc:cdrom,r", "/srv/images/web1.img,raw,xvdb,w", "vdev=hdd,cdrom,access=ro"]
vif = ["bridge=xenbr0,mac=00:16:3e:00:00:01,model=e1000", "bridge=ovsbr0.100,script=vif-openvswitch,rate=10Mb/s,vifname=web1.1,ip=192.0.2.5"]
vnc = 1
vnclisten = "0.0.0.0"
vncpasswd = "secret"
sdl = 0
spice = 0
usb = 1
usbdevice = "tablet"
usbctrl = ["type=auto,version=2,ports=4"]
serial = "pty"
boot = "dc"
soundhw = "ac97"
stdvga = 1
videoram = 16
localtime = 1
acpi = 1
apic = 1
pae = 1
hpet = 1
nx = 1
viridian = ["base", "freq", "!time_ref_count"]
bios = "seabios"
keymap = "de"
cpuid = "host,tm=0"
tsc_mode = "native"
timer_mode = "one_missed_tick_pending"
xen_platform_pci = 1
channel = ["name=org.qemu.guest_agent.0,connection=pty"]
on_poweroff = "destroy"
on_reboot = "restart"
on_crash = "preserve"
on_watchdog = "restart"
device_model_version = "qemu-xen"
"""
PVH = """\
type = "pvh"
kernel = "/usr/lib/grub-xen/grub-i386-xen_pvh.bin"
memory = 512
vcpus = 1
maxvcpus = 4
disk = ["/dev/drbd/by-res/web1/0,raw,xvda,w", "vdev=xvdb,access=w,script=block-iscsi,target=iqn=iqn.2001-05.com.example:x,portal=192.0.2.3"]
vif = ["bridge=xenbr0", ""]
nomigrate = 0
cpu_weight = 512
cap = 50
max_grant_frames = 64
"""
PV = """\
type = "pv"
bootloader = "pygrub"
memory = 256
disk = ["phy:/dev/mapper/vg0-web1,xvda,w", "tap:aio:/srv/web1.img,xvdb,w"]
vif = ["mac=00:16:3e:00:00:02,bridge=xenbr0,script=/etc/xen/scripts/vif-bridge,type=vif"]
vfb = ["vnc=1,vnclisten=127.0.0.1,keymap=en-us"]
root = "/dev/xvda1 ro"
extra = "console=hvc0"
uuid = "5b1d8f3e-6a0c-4d57-9f0e-2c9a4e7b1d60"
pool = "Pool-0"
"""
KERNEL = """\
kernel = "/boot/vmlinuz"
ramdisk = "/boot/initrd.img"
cmdline = "root=/dev/xvda1 ro console=hvc0"
memory = 128
"""
ORDINARY = {"hvm": HVM, "pvh": PVH, "pv": PV, "kernel": KERNEL}

# A line of xl.cfg(5), the guest that it is added to, and the key that the refusal names.
HOSTILE = {
    'device_model_override = "/opt/evil"': (HVM, "b_info.device_model = '/opt/evil'"),
    'device_model_args = ["-monitor", "tcp:0.0.0.0:5555"]': (HVM, "b_info.extra = "),
    'device_model_args_hvm = ["-x"]': (HVM, "b_info.extra_hvm = "),
    'device_model_args_pv = ["-x"]': (PV, "b_info.extra_pv = "),
    'device_model_user = "root"': (HVM, "b_info.device_model_user = 'root'"),
    'bootloader = "/opt/evil"': (KERNEL, "b_info.bootloader = '/opt/evil'"),
    'bootloader = "pygrub"\nbootloader_args = ["--output-directory=/etc/cron.d"]': (KERNEL, "b_info.bootloader_args = "),
    'disk = ["vdev=xvda,script=/opt/evil,target=/dev/vg0/x"]': (KERNEL, "disks[0].script = '/opt/evil'"),
    'disk = ["vdev=xvda,script=../../../opt/evil,target=x"]': (KERNEL, "disks[0].script = '../../../opt/evil'"),
    'disk = ["/srv/images/web1.qcow2,qcow2,xvda,w"]': (KERNEL, "disks[0].format = 'qcow2'"),
    'disk = ["vdev=xvda,script=block,target=/dev/vg0/../sda"]': (KERNEL, "disks[0].pdev_path = '/dev/vg0/../sda'"),
    'disk = ["vdev=xvda,backend=driver,target=/dev/vg0/x"]': (KERNEL, "disks[0].backend_domname = 'driver'"),
    'vif = ["script=/opt/evil"]': (KERNEL, "nics[0].script = '/opt/evil'"),
    'vif = ["script=vif-route,ip=192.0.2.5"]': (KERNEL, "nics[0].script = 'vif-route'"),
    'vif = ["bridge=xenbr0,ip=0.0.0.0/1 128.0.0.0/1"]': (KERNEL, "nics[0].ip = '0.0.0.0/1 128.0.0.0/1'"),
    'vif = ["model=e1000,bridge=xenbr0,backend=driver"]': (KERNEL, "nics[0].backend_domname = 'driver'"),
    'pci = ["01:00.0"]': (HVM, "pcidevs = "),
    'usbdev = ["hostbus=1,hostaddr=2"]': (HVM, "usbdevs = "),
    'dtdev = ["/soc/x"]': (PVH, "dtdevs = "),
    "gfx_passthru = 1": (HVM, "b_info.type.hvm.gfx_passthru = 'True'"),
    'ioports = ["2f8-2ff"]': (KERNEL, "b_info.ioports = "),
    'iomem = ["fd000,1"]': (KERNEL, "b_info.iomem = "),
    "irqs = [5]": (KERNEL, "b_info.irqs = "),
    'usbdevice = "host:1.2"': (HVM, "b_info.type.hvm.usbdevice = 'host:1.2'"),
    'serial = "/dev/ttyS0"': (HVM, "b_info.type.hvm.serial = '/dev/ttyS0'"),
    'serial = ["pty", "file:/etc/cron.d/x"]': (HVM, "b_info.type.hvm.serial_list[1] = 'file:/etc/cron.d/x'"),
    'firmware_override = "/opt/evil"': (HVM, "b_info.type.hvm.firmware = '/opt/evil'"),
    'bios_path_override = "/etc/shadow"': (HVM, "b_info.type.hvm.system_firmware = '/etc/shadow'"),
    'smbios_firmware = "/etc/shadow"': (HVM, "b_info.type.hvm.smbios_firmware = '/etc/shadow'"),
    'acpi_firmware = "/etc/shadow"': (HVM, "b_info.type.hvm.acpi_firmware = '/etc/shadow'"),
    'device_tree = "/opt/evil.dtb"': (PVH, "b_info.device_tree = '/opt/evil.dtb'"),
    'p9 = ["tag=share,path=/,security_model=none"]': (KERNEL, "p9s = "),
    'channel = ["name=x,connection=socket,path=/etc/cron.d/x"]': (HVM, "channels[0].connection.socket = "),
    'vtpm = ["backend=vtpm"]': (KERNEL, "vtpms = "),
    'vnclisten = "unix:/etc/passwd"': (HVM, "b_info.type.hvm.vnc.listen = 'unix:/etc/passwd'"),
    "driver_domain = 1": (KERNEL, "c_info.driver_domain = 'True'"),
    "nestedhvm = 1": (HVM, "b_info.nested_hvm = 'True'"),
    'stubdomain_kernel = "/opt/evil"\ndevice_model_stubdomain_override = 1': (HVM, "b_info.stubdomain_kernel = '/opt/evil'"),
    'on_crash = "coredump-restart"': (HVM, "on_crash = 'coredump_restart'"),
    'passthrough = "enabled"': (HVM, "c_info.passthrough = 'enabled'"),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose xl has the real libxl, and no hypervisor to ask for memory."""
    folder = tmp_path_factory.mktemp("hv")
    made = Host(folder, "hv1", xl=dry_xl(), extra='[policy]\nfree_memory = "off"\n')
    yield made
    made.close()


def parsed(host: Host, text: str, name: str = "web1") -> bytes:
    """What the real xl makes of a configuration."""
    file = host.folder / "guest.cfg"
    file.write_text(f'name = "{name}"\n{text}')
    done = subprocess.run([host.xl, "create", "-q", "-n", str(file)], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.encode()


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_guest_may_come(host: Host, kind: str) -> None:
    """Guests as xl's users have them, with disks of every kind, networks, VNC and a USB tablet, come without any configuration."""
    head = parsed(host, ORDINARY[kind])
    assert len(head) > 500
    judge_domain(load_config(str(host.config)), "hv2", head)


@pytest.mark.parametrize("line", HOSTILE)
def test_hostile_guest_may_not(host: Host, line: str) -> None:
    """A line more in its configuration, and the guest may not come: the refusal names the key and the value as libxl has them."""
    guest, said = HOSTILE[line]
    keys = {one.partition("=")[0].strip() for one in line.splitlines()}
    kept = "".join(f"{one}\n" for one in guest.splitlines() if one.partition("=")[0].strip() not in keys)
    config = load_config(str(host.config))
    judge_domain(config, "hv2", parsed(host, kept))
    with pytest.raises(RefusedError) as caught:
        judge_domain(config, "hv2", parsed(host, f"{kept}{line}\n"))
    assert str(caught.value).startswith(said)


def test_check_of_a_file(host: Host, tmp_path: Path) -> None:
    """`policy check FILE` has xl parse the file, and says beforehand what would happen, and by which rule."""
    file = tmp_path / "guest.cfg"
    file.write_text(f'name = "web1"\n{HVM}')
    assert host.ctl("policy", "check", str(file)).stdout == "web1 may come\n"
    with file.open("a") as stream:
        stream.write('device_model_override = "/opt/evil"\n')
    said = host.ctl("policy", "check", str(file), status=12).stderr
    assert said == "xensecurectl: b_info.device_model = '/opt/evil' is refused by the destination's policy: [policy] device_models has none\n"
    file.write_text("name = \n")
    assert "'xl create' failed with status 1" in host.ctl("policy", "check", str(file), status=5).stderr
    for none in (tmp_path / "none.cfg", tmp_path / f"{'a' * 300}.cfg", tmp_path):
        assert "no file that can be read; give one in xl.cfg(5)'s format" in host.ctl("policy", "check", str(none), status=2).stderr


def test_check_for_a_peer(host: Host, tmp_path: Path) -> None:
    """`--from PEER` judges by that peer's section."""
    file = tmp_path / "guest.cfg"
    file.write_text(f'name = "web1"\n{HVM}')
    host.configure('[policy]\nfree_memory = "off"\n[policy.peer.hv7]\nvcpus = 1\n[policy.peer.hv8]\nsend = false\n[policy.peer.hv9]\ncheck = "off"\n')
    try:
        assert "at most 1 ([policy.peer.hv7] vcpus)" in host.ctl("policy", "check", "--from", "hv7", str(file), status=12).stderr
        said = host.ctl("policy", "check", "--from", "hv8", str(file), status=12).stderr
        assert "hv8 may not send domains there: [policy.peer.hv8] send is false" in said
        assert "[policy.peer.hv9] check is off, and nothing was looked at" in host.ctl("policy", "check", "--from", "hv9", str(file)).stdout
        assert "no peer 'hv2' is known here" in host.ctl("policy", "check", "--from", "hv2", str(file), status=4).stderr
    finally:
        host.configure('[policy]\nfree_memory = "off"\n')
