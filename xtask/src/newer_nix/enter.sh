# Runs a command with a directory as its root: enter ROOT DIRECTORY... -- COMMAND...
#
# Nix's sandbox does not work in a plain chroot, because pivot_root(2) and mounts need a mount point
# as the root of the mount namespace. So ROOT becomes the root of this mount namespace. The other
# directories are mounted in it with the same paths. Builds need /dev/pts.
set -e
root=$1
shift
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --rbind "$1" "$root$1"
  shift
done
shift
mount --rbind /dev "$root/dev"
cd "$root"
mkdir -p old
pivot_root . old
# Before the umount, which reads it.
mount -t proc proc /proc
umount -l /old
exec "$@"
