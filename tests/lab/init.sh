#!/bin/sh
# First process of the guest, from the initrd: put the host's root, read-only, under a tmpfs and go on there.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
if grep -q lab.probe /proc/cmdline; then reboot -f; fi
while read -r module; do insmod "/modules/$module"; done </modules/order
mkdir /lower /upper /whole
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose hostroot /lower || echo "lab: no root over 9p"
mount -t tmpfs -o mode=755 upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /whole || echo "lab: no overlay"
for kept in proc sys dev; do mount -o move /$kept /whole/$kept; done
mkdir -p /whole/run
mount -t tmpfs run /whole/run
cp /lab.env /whole/run/
# shellcheck source=/dev/null
. /lab.env
exec switch_root /whole /bin/bash "$LAB_ROOT/tests/lab/guest-init.sh"
