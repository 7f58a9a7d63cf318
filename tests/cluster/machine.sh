#!/bin/bash
# A machine made of this one that keeps nothing: its root is this machine's, everything written stays in memory.
# machine.sh NAME TOOLS WORK CGROUP
#   TOOLS   TOOLS/usr is laid over /usr: programs that this machine lacks
#   WORK    a folder on a disk, the same inside and outside
#   CGROUP  name of the control group that holds all of the machine's processes
# Says READY and stays as PID 1 of the machine; when it is killed, everything in the machine ends with it.
set -euo pipefail
name=$1 tools=$2 work=$3 cgroup=$4

if [ "${5:-}" != inside ]; then
  for controller in /sys/fs/cgroup/*/; do
    # The unified hierarchy of a hybrid machine has no controllers, and the kubelet has no use for it.
    [ "$controller" = /sys/fs/cgroup/unified/ ] && continue
    mkdir "$controller$cgroup"
    if [ -e "$controller/cpuset.cpus" ]; then
      cat "$controller/cpuset.cpus" >"$controller$cgroup/cpuset.cpus"
      cat "$controller/cpuset.mems" >"$controller$cgroup/cpuset.mems"
    fi
    echo $$ >"$controller$cgroup/cgroup.procs"
  done
  exec unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child=KILL "$0" "$name" "$tools" "$work" "$cgroup" inside
fi

mount --make-rprivate /
stage=$work/stage
mkdir -p "$stage"
mount -t tmpfs -o mode=755 machine "$stage"
mkdir "$stage"/{root,kernel,root-upper,root-work,usr-upper,usr-work}
root=$stage/root
mount -t overlay -o "lowerdir=/,upperdir=$stage/root-upper,workdir=$stage/root-work" overlay "$root"
# /usr separately, because a layer must not lie within another: TOOLS lies within /.
mount -t overlay -o "lowerdir=$tools/usr:/usr,upperdir=$stage/usr-upper,workdir=$stage/usr-work" overlay "$root/usr"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
for controller in /sys/fs/cgroup/*/; do
  controller=$(basename "$controller")
  [ "$controller" = unified ] && continue
  mkdir "$root/sys/fs/cgroup/$controller"
  option=$controller
  [ "$controller" = systemd ] && option=none,name=systemd
  mount -t cgroup -o "$option" cgroup "$root/sys/fs/cgroup/$controller"
done
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir -p "$root/run/lock"
mkdir -p "$root$work"
mount --bind "$work" "$root$work"
# containerd's own overlays need a folder that is not one, the kubelet a mount of its own.
for folder in var/lib/containerd var/lib/kubelet; do
  mkdir -p "$root/$folder" "$work/$folder"
  mount --bind "$work/$folder" "$root/$folder"
done

# The kubelet sets these for the whole kernel. Here it finds them set: they are files.
wanted() {
  [ -e "$root/proc/sys/$1" ] || return 0
  local file=$stage/kernel/${1//\//.}
  echo "$2" >"$file"
  mount --bind "$file" "$root/proc/sys/$1"
}
wanted vm/overcommit_memory 1
wanted vm/panic_on_oom 0
wanted kernel/panic 10
wanted kernel/panic_on_oops 1
wanted kernel/keys/root_maxkeys 1000000
wanted kernel/keys/root_maxbytes 25000000

hostname "$name"
rm -f "$root/etc/resolv.conf" "$root/etc/hostname" "$root/etc/hosts"
echo "$name" >"$root/etc/hostname"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
ip link set lo up
sysctl -q -w net.ipv4.ip_forward=1

cd "$root"
mkdir -p .old
pivot_root . .old
umount -l /.old
rmdir /.old
mount --make-rshared /
echo READY
exec <&- >&-
# PID 1 takes over orphans, and bash reaps them.
while :; do
  sleep 1000 &
  wait $!
done
