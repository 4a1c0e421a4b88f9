#!/usr/bin/env bash
# init.sh DIRECTORY STORE NAME DEVICE ADDRESS GATEWAY PAUSE: the first process of the test node (enter.sh). It mounts what a
# node has for itself, takes its end of the cable, and becomes `pause`, which reaps orphans. DIRECTORY holds this run's
# files, STORE what outlives it (images). Nothing outside the two is written, and nothing mounted here is seen outside.
set -euo pipefail
directory=$1 store=$2 name=$3 device=$4 address=$5 gateway=$6 pause=$7
read -r pid _ </proc/self/stat   # still the outer /proc: the process id that the outside knows

mount -t proc proc /proc
mount -t sysfs sysfs /sys   # that of this network
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
while IFS=: read -r _ controllers _; do   # the cgroup namespace roots each hierarchy in our own cgroup
  [[ -n $controllers ]] || continue
  mkdir "/sys/fs/cgroup/${controllers#name=}"   # the named one too: the kubelet misses it otherwise
  mount -t cgroup -o "${controllers/#name=/none,name=}" cgroup "/sys/fs/cgroup/${controllers#name=}"
done </proc/self/cgroup
mount -t tmpfs -o mode=755 tmpfs /run   # sockets of containerd and its shims, network namespaces of pods
for state in /var/log /var/lib/cni /var/lib/kubelet; do   # pods' logs, their addresses, their volumes
  mkdir -p "$directory$state" "$state"
  mount --bind "$directory$state" "$state"
done
mkdir -p "$store/containerd"
echo "nameserver $address" >"$directory/resolv.conf"
mount --bind "$directory/resolv.conf" "$(readlink -f /etc/resolv.conf)"
# The kubelet insists on these settings of the whole machine. It is shown the values it wants; the machine keeps its own.
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  file=$directory/${setting//[\/=]/-}
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done
mount --make-rshared /

hostname "$name"
ip link set lo up
echo "$pid" >"$directory/init.pid.partial"
mv "$directory/init.pid.partial" "$directory/init.pid"   # now rig/node.py plugs the cable in
for ((i = 0; i < 600; i++)); do
  ip link show "$device" &>/dev/null && break
  sleep 0.1
done
ip address add "$address/24" dev "$device"
ip link set "$device" up
ip route add default via "$gateway"
sysctl --quiet --write net.ipv4.ip_forward=1
sysctl --quiet --write net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true   # where bridges pass through the firewall
touch "$directory/plugged"
exec "$pause"
