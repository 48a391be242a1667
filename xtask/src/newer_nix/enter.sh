# Runs a command with a directory as its root: enter ROOT DIRECTORY... -- COMMAND...
#
# Nix's sandbox does not work in a plain chroot (pivot_root(2) and mounts want the root of a mount
# namespace to be a mount point), so the root becomes that of the mount namespace this runs in. The
# other directories are there too, under their own names. Builds need /dev/pts.
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
