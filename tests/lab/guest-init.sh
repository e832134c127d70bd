#!/bin/bash
# Process 1 of the guest, on the host's root: what programs expect to find, then the agent; power off when it ends.
# shellcheck source=/dev/null
. /run/lab.env
export PATH HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
mkdir -p /dev/shm /dev/pts /run/lock "/lib/modules/$LAB_KERNEL"
mount -t tmpfs shm /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup
mount --bind "$LAB_MODULES" "/lib/modules/$LAB_KERNEL"
ln -sf /proc/self/fd /dev/fd
hostname lab
ip link set lo up
modprobe virtio_console
cd "$LAB_ROOT" || exit
if grep -q lab.systemd /proc/cmdline; then
    mkdir -p /run/systemd/system
    # What this machine's own systemd would do for it: tidy up all of /tmp and /var, look at its fstab and its scripts of System V
    # at every reload, look at every device, and whatever is due by its timers. Over 9p, minutes of it.
    for unneeded in systemd-tmpfiles-setup.service systemd-udev-trigger.service timers.target; do
        ln -s /dev/null "/run/systemd/system/$unneeded"
    done
    mount -t tmpfs none /lib/systemd/system-generators
    cat >/run/systemd/system/lab.target <<UNIT
[Unit]
Requires=basic.target
After=basic.target
Wants=lab-agent.service
UNIT
    cat >/run/systemd/system/lab-agent.service <<UNIT
[Service]
Environment=PATH=$PATH HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WorkingDirectory=$LAB_ROOT
ExecStart=$LAB_PYTHON -c 'from tests.lab.agent import main; main()'
KillMode=process
UNIT
    exec /lib/systemd/systemd --unit=lab.target
fi
setsid "$LAB_PYTHON" -c 'from tests.lab.agent import main; main()' </dev/null
echo o >/proc/sysrq-trigger
sleep 60
