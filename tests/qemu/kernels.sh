#!/bin/bash
# Kernels attached with setfattr(1) to files on a namespace, against ordinary programs on the same
# bytes: a view, reads in strides, writes, a process that is not the owner, a snapshot that stays.
# Runs in the host's root, with /mnt/warren mounted and the objects in /run/scripts/kernels.
set -euo pipefail

mnt=/mnt/warren
work=$(mktemp -d)
cd $mnt
mkdir k
cp /run/scripts/kernels/*.o k
warren kernel check k/grep.o >/dev/null
read_stream=user.process.csd_read_stream
write_stream=user.process.csd_write_stream

same() {
    cmp "$2" "$3" || {
        echo "$1: the kernel's output is not what was expected" >&2
        exit 1
    }
}

# About 4 MiB of text, on the device and not in the page cache.
seq 1 600000 >text
sync text
echo 3 >/proc/sys/vm/drop_caches
cp text "$work/text"

# A view: the arguments of grep are the length of the literal and its bytes.
word=$(printf 777 | od -An -v -tu1 | awk '{ print $1 + 256 * ($2 + 256 * $3) }')
setfattr -n $read_stream -v "/k/grep.o;view;owner=$$;arg=3,$word" text
cat text >"$work/found"
getfattr --only-values -n user.process.csd_stats text | grep -q '"executions":1'
setfattr -x $read_stream text
grep -F 777 "$work/text" >"$work/wanted"
same 'view of grep' "$work/wanted" "$work/found"

# Reads in strides. Whoever is not the owner reads the file and sees no attribute; what is written
# after the kernel was attached is not in its snapshot.
mkfifo "$work/attached" "$work/changed"
bash -c '
    set -e
    setfattr -n '$read_stream' -v "/k/passthrough.o;owner=$$" text
    dd if=text of='"$work"'/before bs=512K status=none
    echo yes >'"$work"'/attached
    read -r _ <'"$work"'/changed
    dd if=text of='"$work"'/after bs=512K status=none' &
owner=$!
read -r _ <"$work/attached"
if getfattr -n $read_stream text >/dev/null 2>&1; then
    echo 'the attribute is seen by a process that has not set it' >&2
    exit 1
fi
dd if=/dev/urandom of=text bs=64K seek=3 count=4 conv=notrunc,fsync status=none
cp text "$work/changed.text"
cmp -s "$work/changed.text" "$work/text" && exit 1
echo yes >"$work/changed"
wait $owner
same 'reads in strides' "$work/text" "$work/before"
same 'reads of the snapshot after a change' "$work/text" "$work/after"

# What is written passes a kernel, and another one undoes it for the reader.
: >packed
setfattr -n $write_stream -v "/k/compress.o;owner=$$" packed
cat "$work/text" >>packed
setfattr -x $write_stream packed
sync packed
# Frames are shorter than what was written, and holes lie between those of two writes.
[ $(($(stat -c %b packed) * 512)) -lt "$(stat -c %s "$work/text")" ]
setfattr -n $read_stream -v "/k/decompress.o;view;owner=$$" packed
cat packed >"$work/unpacked"
setfattr -x $read_stream packed
same 'compressed by one kernel and decompressed by another' "$work/text" "$work/unpacked"

# What is no kernel is refused.
if setfattr -n $read_stream -v "/text;owner=$$" packed 2>/dev/null; then
    echo 'a text was accepted as a kernel' >&2
    exit 1
fi
cd /
rm -rf "$work"
echo 'kernels: their output is what ordinary programs give'
