#!/bin/sh
# The first program of the machine that tests/rdma/image.py makes.
export PATH=/usr/bin:/bin:/sbin PYTHONPATH=/py/orion PYTHONDONTWRITEBYTECODE=1 HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmp /dev/shm
mount -t tmpfs tmp /tmp
for module in /modules/*; do insmod "$module" || echo "CHECK module FAIL $module"; done
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
sleep 1
rdma link add rxe0 type rxe netdev eth0
/py/bin/python3 -m tests.rdma.guest
poweroff -f
