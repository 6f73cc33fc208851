# shellcheck shell=bash
# As `docker run --read-only --network none --tmpfs /tmp:exec` runs a container whose files are in $root.
# $2: where it is mounted, $3: its working folder, $4: its user, then NAME=VALUE... and the command.
# shellcheck disable=SC2154  # root is the image of the script before it
mount --options bind,ro "$root" "$2"
mount --types sysfs --options ro sysfs "$2/sys"
mount --rbind /dev "$2/dev"
mount --types tmpfs tmpfs "$2/dev/shm"
mount --types tmpfs tmpfs "$2/tmp"
exec unshare --net --pid --fork --root="$2" --wd="$3" --mount-proc --setgid="$4" --setuid="$4" \
  env -i HOME=/tmp "${@:5}"
