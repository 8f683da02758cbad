# Helpers for scripts in the guest; loaded before the script. The first image is vda, the second vdb...
# CACHE and BACKING below are such names (vda), VOLUME is a bcacheN.

fail() { echo "FAIL: $*"; exit 1; }

# until_true SECONDS COMMAND...: polls until the command succeeds; status 1 when time is up
until_true() {
	_left=$(( $1 * 5 )); shift
	until "$@" >/dev/null 2>&1; do
		[ $_left -gt 0 ] || return 1
		_left=$((_left - 1)); sleep 0.2
	done
}

# register NAME...: hands devices to the kernel; a refusal is shown with the kernel's reason, status 1
register() {
	_status=0
	for _name in "$@"; do
		_before=$(dmesg | wc -l)
		echo "/dev/$_name" 2>/dev/null > /sys/fs/bcache/register && continue
		echo "REFUSED $_name"; _status=1
		dmesg | tail -n +$((_before + 1)) | grep -i bcache
	done
	return $_status
}

_back() { echo "/sys/block/$1/bcache"; }
_set() { ls -d /sys/fs/bcache/*-*-* 2>/dev/null | head -n 1; }

# volume_of BACKING: the bcacheN that serves it
volume_of() { basename "$(readlink "$(_back "$1")/dev")"; }
# await_volume BACKING: until the backing device is served; await_set CACHE: until the set runs
await_volume() { until_true 60 test -e "$(_back "$1")/dev/dev" || fail "no volume on $1"; }
await_set() { until_true 60 test -e "/sys/block/$1/bcache/set/stop" || fail "no running set on $1"; }
# flash_volumes: the bcacheN that no backing device serves
flash_volumes() {
	for _v in /sys/block/bcache*; do
		[ -e "$_v" ] || continue
		grep -q . "$_v/bcache/backing_dev_name" 2>/dev/null || basename "$_v"
	done
}

# state_of BACKING; set_mode BACKING MODE
state_of() { cat "$(_back "$1")/state"; }
set_mode() { echo "$2" > "$(_back "$1")/cache_mode"; }
# cache_everything BACKING...: no sequential and no congestion bypass
cache_everything() {
	for _b in "$@"; do
		echo 0 > "$(_back "$_b")/sequential_cutoff"
		for _k in read write; do
			echo 0 2>/dev/null > "$(_back "$_b")/cache/congested_${_k}_threshold_us"
		done
	done
	return 0
}
# hold_writeback BACKING...: dirty data stays dirty; release_writeback: it is written back at full speed
hold_writeback() { for _b in "$@"; do echo 0 > "$(_back "$_b")/writeback_running"; done; }
release_writeback() {
	for _b in "$@"; do
		echo 0 > "$(_back "$_b")/writeback_percent"
		echo 0 > "$(_back "$_b")/writeback_delay"
		echo 1 > "$(_back "$_b")/writeback_running"
	done
}
# drain BACKING [SECONDS]: until nothing is dirty
drain() {
	release_writeback "$1"
	until_true "${2:-120}" grep -q '^clean' "$(_back "$1")/state"
}
# flash_volume SIZE: makes a flash-only volume
flash_volume() { echo "$1" > "$(_set)/flash_vol_create"; }

# collect_garbage [CACHE]: one pass of the kernel's garbage collection, waited for; of the first set, or the one with this device
collect_garbage() {
	_tracing=/sys/kernel/tracing
	[ -e $_tracing/trace ] || mount -t tracefs tracefs $_tracing
	echo 1 > $_tracing/events/bcache/bcache_gc_end/enable
	_of=$(_set); [ -z "$1" ] || _of=$(readlink -f "/sys/block/$1/bcache/set")
	_passes=$(_passes_of "$_of")
	echo 1 > "$_of/internal/trigger_gc"
	until_true 100 _more_passes_than "$_passes" "$_of"
}
_passes_of() { grep -c "bcache_gc_end: $(basename "$1")" /sys/kernel/tracing/trace; }
_more_passes_than() { [ "$(_passes_of "$2")" -gt "$1" ]; }

# stop_everything: volumes, then sets, then backing devices that are left; the images are then as after a
# clean shutdown
stop_everything() {
	sync
	for _f in /sys/block/bcache*/bcache/stop /sys/fs/bcache/*-*-*/stop; do [ -e "$_f" ] && echo 1 > "$_f"; done
	until_true 90 _nothing_at "/sys/block/bcache*" || fail "a volume would not stop"
	until_true 90 _nothing_at "/sys/fs/bcache/*-*-*" || fail "a set would not stop"
	for _f in /sys/block/vd*/bcache/stop; do [ -e "$_f" ] && echo 1 > "$_f"; done
	until_true 90 _nothing_at "/sys/block/vd*/bcache" || fail "a backing device would not stop"
	sync
}
_nothing_at() { for _p in $1; do [ -e "$_p" ] && return 1; done; return 0; }

# hash_volumes FOLDER SHA256...: a line per volume to /out/FOLDER/volumes, "VOLUME BACKING SHA256" ("none" for a flash
# volume); of content with no hash that is given, a map to /out/FOLDER/VOLUME.map
hash_volumes() {
	_to=/out/$1; shift
	mkdir -p "$_to"; : > "$_to/volumes"; sync
	for _v in /sys/block/bcache*; do
		[ -e "$_v" ] || continue
		_n=$(basename "$_v"); _by=none
		for _b in /sys/block/vd*/bcache/dev; do
			[ "$(basename "$(readlink -f "$_b")")" = "$_n" ] && _by=$(echo "$_b" | cut -d/ -f4)
		done
		_hash=$(sectors hash "/dev/$_n") || _hash=unreadable
		echo "$_n $_by $_hash" >> "$_to/volumes"
		case " $* " in *" $_hash "*) ;; *) sectors map "/dev/$_n" > "$_to/$_n.map" ;; esac
	done
}
# facts: telling sysfs values, FACT name.key=value; kernel_log: what the kernel said about bcache
facts() {
	for _f in "$(_set)"/cache_available_percent "$(_set)"/tree_depth "$(_set)"/root_usage_percent \
		"$(_set)"/bucket_size "$(_set)"/block_size "$(_set)"/internal/btree_nodes "$(_set)"/cache0/priority_stats; do
		[ -r "$_f" ] && echo "FACT set.$(basename "$_f")=$(tr '\n' ' ' < "$_f")"
	done
	for _v in /sys/block/bcache*; do
		for _k in state cache_mode dirty_data label; do
			[ -r "$_v/bcache/$_k" ] && echo "FACT $(basename "$_v").$_k=$(cat "$_v/bcache/$_k")"
		done
	done
	return 0
}
kernel_log() { dmesg | grep -E '[bB]cache|I/O error|BUG:|WARNING:|Oops' | sed 's/^/LOG /'; return 0; }
