#!/usr/bin/env bash
# First process of a machine that tests/cluster/machines.py makes of namespaces: mounts what only
# this machine sees, waits for its network and becomes its SSH server.
# machine.sh NAME ADDRESS WORK VENV; the machine's own files are in WORK/NAME.
set -euo pipefail
name=$1 address=$2 work=$3 venv=$4

hostname "$name"
mount -t tmpfs tmpfs /mnt
mkdir /mnt/{home,tmp,shared,etc,installed,changes,venv}
mount --bind "$work/$name/home" /mnt/home
mount --bind "$work/$name/tmp" /mnt/tmp
mount --bind "$work/$name/etc" /mnt/etc
mount --bind "$work/shared" /mnt/shared
mount --bind "$venv" /mnt/installed
mkdir /mnt/changes/{upper,work} # what pip writes stays in this machine
mount -t overlay overlay -o lowerdir=/mnt/installed,upperdir=/mnt/changes/upper,workdir=/mnt/changes/work /mnt/venv

mount --bind /mnt/tmp /tmp # hides WORK, and perhaps VENV
mkdir -p "$venv"
mount --bind /mnt/venv "$venv"
mount -t tmpfs tmpfs /srv
mkdir /srv/{home,shared}
mount --bind /mnt/home /srv/home
mount --bind /mnt/shared /srv/shared
for file in passwd hosts resolv.conf; do mount --bind "/mnt/etc/$file" "/etc/$file"; done
mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
cp /mnt/etc/host_key /run/
chmod 600 /run/host_key

until ip link show eth0 &>/dev/null; do sleep 0.05; done
ip link set lo up
ip address add "$address/24" dev eth0
ip link set eth0 up
ip route add default dev eth0 # Ray takes the address of this route
exec /usr/sbin/sshd -D -e -f /mnt/etc/sshd_config
