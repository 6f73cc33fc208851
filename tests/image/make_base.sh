# shellcheck shell=bash
# The image that the Dockerfile begins with in the tests. Debian 12 has the locked Python.
# $1: the machine's certificates, which are in it, as a company's are in its base.
container=$(buildah from scratch) && root=$(buildah mount "$container")
debootstrap --variant=minbase bookworm "$root"
install -D --mode=644 "$1" "$root/usr/local/share/ca-certificates/machine.crt"
buildah commit --quiet --rm "$container" base
