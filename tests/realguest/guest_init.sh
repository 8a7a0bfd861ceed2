#!/bin/sh
# The first process of the guest: see tests/realguest/machine.py.
export PATH=/usr/bin:/usr/sbin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
exec </dev/console >/dev/console 2>&1
hostname guest
while read -r module; do
    insmod "$module" || echo "init: cannot load $module"
done </lib/modules/load-order

root= rootfstype= rootflags= init=
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    rootfstype=*) rootfstype=${word#rootfstype=} ;;
    rootflags=*) rootflags=${word#rootflags=} ;;
    init=*) init=${word#init=} ;;
    esac
done
if [ "$rootfstype" != 9p ]; then
    exec sh /control
fi
mount -t 9p -o "$rootflags" "$root" /newroot || { echo "init: cannot mount $root"; exit 1; }
for folder in dev proc sys; do
    mount --move /$folder /newroot/$folder || echo "init: the root file system has no /$folder"
done
if [ "$init" ]; then
    exec switch_root -c /dev/ttyS1 /newroot "$init"
fi
exec switch_root /newroot /bin/sh -c "$(cat /control)"
