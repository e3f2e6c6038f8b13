#!/bin/sh
# sanitize.sh VENV: the tests under AddressSanitizer and UndefinedBehaviorSanitizer, the C core alone under these with
# LeakSanitizer, under ThreadSanitizer and under valgrind.
set -eu
venv=$(realpath "$1")
work=$(mktemp -d)
real=
trap 'rm -rf "$work"; [ -z "$real" ] || rmdir "$real"' EXIT
command -v valgrind >/dev/null || { echo "missing: apt-get install valgrind" >&2; exit 1; }

flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"
core="csrc/event_control.c csrc/wait_loop.c csrc/control_file.c csrc/discovery.c csrc/memory_events.c csrc/triggers.c"
driver="$core tests/driver.c"
faults="$core tests/faults/core.c tests/faults/interpose.c"

mkdir "$work/plain"
printf 'oom_kill_disable 0\nunder_oom 0\noom_kill 7\n' >"$work/plain/memory.oom_control"
: >"$work/plain/cgroup.event_control"
cgroups=$work/plain
if [ -w /sys/fs/cgroup/memory/cgroup.event_control ]; then
	real=/sys/fs/cgroup/memory/memcg_oom_driver_$$
	mkdir "$real"
	cgroups="$cgroups $real"
fi

echo "-- the C core under ASan, UBSan, LSan"
gcc -std=c11 -Icsrc $flags -o "$work/driver-sanitized" $driver
for cgroup in $cgroups; do "$work/driver-sanitized" "$cgroup"; done
# Each system call fails once, in each place, with each errno.
gcc -std=c11 -Icsrc $flags -o "$work/faults-sanitized" $faults -ldl
mkdir "$work/faults"
"$work/faults-sanitized" "$work/faults" >/dev/null

echo "-- the C core under TSan"
gcc -std=c11 -Icsrc -fsanitize=thread -g -O1 -o "$work/driver-threads" $driver
# With addresses that are not random: of these there are more than it knows of.
for cgroup in $cgroups; do setarch -R "$work/driver-threads" "$cgroup"; done

echo "-- the C core under valgrind"
gcc -std=c11 -Icsrc -g -O1 -o "$work/driver" $driver
for cgroup in $cgroups; do
	valgrind --quiet --error-exitcode=9 --leak-check=full --track-fds=yes "$work/driver" "$cgroup" 2>"$work/log" || {
		cat "$work/log"
		exit 1
	}
	# What valgrind lists beyond the inherited ones was left open.
	if grep -A3 'Open file descriptor' "$work/log" | grep -q ' at 0x'; then
		cat "$work/log"
		exit 1
	fi
done

echo "-- the tests under ASan and UBSan"
# Leaks are not looked for here: the interpreter keeps much until its end. Left out are the tests of the packaging, those
# in which the watcher lives in a small cgroup itself, where the sanitizer's shadow memory has no room, those that start
# programs of others, those that count system calls and memory, in which the sanitizers have their part, and those that
# interrupt the same Python code thousands of times. So does test_no_memory.py, which has Python's allocator fail: that
# is not the C core's, and its calls are made by all other tests.
# Built from a copy: somebody may be building here meanwhile.
mkdir "$work/source"
cp -r csrc memcg_oom share setup.py pyproject.toml README.md LICENSE* "$work/source"
CFLAGS=$flags LDFLAGS=$flags "$venv/bin/pip" install --quiet --no-deps --target "$work/package" "$work/source"
nm -D "$work"/package/memcg_oom/_native*.so | grep -q __asan
sanitized() {
	# Two of these run beside each other, and must not clear away each other's folders.
	PYTEST_DEBUG_TEMPROOT=$(mktemp -d "$work/XXX") PYTHONPATH=$work/package LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 MEMCG_OOM_ROUNDS="${MEMCG_OOM_ROUNDS:-100}" MEMCG_OOM_SPOOFED=20 \
		"$venv/bin/pytest" -q -p no:cacheprovider "$@"
}
# Beside each other: one of them sleeps most of the time.
sanitized tests/fake --deselect tests/fake/test_package.py --ignore tests/fake/test_deploy.py \
	--ignore tests/fake/test_fuzz.py --ignore tests/fake/test_model.py --ignore tests/fake/test_no_memory.py \
	--ignore tests/fake/test_system_calls_fail.py --ignore tests/fake/test_docs.py \
	-k "not every_moment and not million" >"$work/fake" 2>&1 &
fake=$!
failed=
sanitized tests/real --deselect tests/real/test_container.py --deselect tests/real/test_containers.py \
	--deselect tests/real/test_churn.py --deselect tests/real/test_daemonset.py --deselect tests/real/test_hostile.py \
	--deselect tests/real/test_injected.py --deselect tests/real/test_docs.py --deselect tests/real/test_examples.py \
	--deselect tests/real/test_privileges.py --deselect tests/real/test_prometheus.py || failed=real
wait "$fake" || failed="$failed fake"
cat "$work/fake"
[ -z "$failed" ] || { echo "failed under the sanitizers: $failed" >&2; exit 1; }
