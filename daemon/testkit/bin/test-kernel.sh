#!/bin/sh
# Runs the scenarios with every backend under a kernel that has WireGuard: this one, if it has, else that of
# guest.sh. Ends in a table of all scenarios; the exit status tells whether all of it is as it should be.
#
#   test-kernel.sh            all suites; the programs must have been built (cargo build --workspace --bins)
#   test-kernel.sh SUITE…     only these; mesh:kernel,mixed is the suite mesh with two of the backends
#
# $WARREN_TEST_GUEST: 1 takes the guest even where this kernel has WireGuard.
set -eu

# Suites whose scenarios depend on the backend of their nodes, the longest first.
each='mesh hosts paths attacks lifecycle'
# Suites that run once, since they choose for themselves.
once='wireguard adapters'
backends='kernel userspace mixed'

cd "$(dirname "$0")/../../.."
asked="${*:-$each $once}"
suites=$(for item in $asked; do echo "${item%%:*}"; done | awk '!seen[$0]++')
logs="${CARGO_TARGET_DIR:-target}/test-kernel"
CARGO="${CARGO:-cargo}"

# One job: a suite with a backend. Its output goes to a file, its beginning and end are told.
if [ "${1:-}" = --job ]; then
    suite=$2
    backend=$3
    log="$logs/$suite.$backend.log"
    began=$(date +%s)
    echo "test-kernel: $suite ($backend) begins"
    if WARREN_TEST_BACKEND="$backend" "$CARGO" test --quiet -p warrend --test "$suite" >"$log" 2>&1; then
        how=ok
    else
        how=FAILED
        echo "test-kernel: exit status not 0" >>"$log"
    fi
    echo "test-kernel: $suite ($backend): $how after $(($(date +%s) - began)) s; $log"
    exit 0
fi

has() { case " $2 " in *" $1 "*) true ;; *) false ;; esac; }

# The backends that an argument names.
chosen() { case "$1" in *:*) echo "${1#*:}" | tr ',' ' ' ;; esac; }

for item in $asked; do
    for backend in $(chosen "$item"); do
        has "$backend" "$backends" || { echo "test-kernel: $item: there is no backend $backend" >&2; exit 1; }
    done
done

# With a network namespace of its own it leaves nothing behind.
has_wireguard() {
    unshare --user --map-root-user --net sh -c 'PATH="$PATH:/sbin:/usr/sbin" ip link add probe type wireguard' \
        2>/dev/null
}

if [ -z "${WARREN_TEST_GUEST:-}" ] && has_wireguard; then
    echo 'test-kernel: under this kernel, which has WireGuard'
    # Scenarios measure times and loss; side by side they would measure each other.
    jobs=1
else
    echo 'test-kernel: under a stock kernel in QEMU'
    daemon/testkit/bin/guest.sh
    host=$(rustc --version --verbose | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${host}_RUNNER=$PWD/daemon/testkit/bin/guest.sh"
    # A guest waits as long as it computes: one keeps 0.6 (hosts), 0.4 (paths) or 0.75 (mesh) of a processor busy.
    jobs=$(($(nproc) + 1))
fi
mkdir -p "$logs"
rm -f "$logs"/*.log

# Built once, so that no job waits for another's compiler.
# shellcheck disable=SC2046 # a list
"$CARGO" test --quiet --no-run -p warrend $(for suite in $suites; do echo --test "$suite"; done)

# Suites side by side rather than backends: not all of them compute as much as mesh.
for backend in $backends; do
    for item in $asked; do
        suite=${item%%:*}
        case "$item" in
        *:*) has "$backend" "$(chosen "$item")" || continue ;;
        *) ! has "$suite" "$once" || [ "$backend" = kernel ] || continue ;;
        esac
        echo "$suite $backend"
    done
done | xargs -n 2 -P "$jobs" "$0" --job

# Reads the logs, in the order of the table's columns; see libtest-mimic for their form.
for suite in $suites; do
    for backend in $backends; do
        log="$logs/$suite.$backend.log"
        [ ! -e "$log" ] || cat "$log"
        echo "test-kernel: end $suite $backend $([ -e "$log" ] && echo run || echo once)"
    done
done | awk -v backends="$backends" '
function settle(result) { results[++found] = result; names[found] = name; name = "" }
function cell(suite, scenario, backend, text) {
    if (!((suite, scenario) in known)) { known[suite, scenario] = 1; row[++rows] = suite SUBSEP scenario }
    table[suite, scenario, backend] = text
    if (text ~ /^FAILED/) failed++
}
BEGIN { columns = split(backends, backend, " ") }
/^running [0-9]+ test/ { announced = $2 }
/^test .* \.\.\. / {
    if (name != "") settle("FAILED (no result)")
    at = index($0, " ... ")
    name = substr($0, 6, at - 6); sub(/ +$/, "", name)
    $0 = substr($0, at + 5)
}
name != "" && /(^|\.)ok$/ { settle("ok") }
name != "" && /(^|\.)FAILED$/ { settle("FAILED") }
name != "" && /^ignored/ { sub(/^ignored \(/, ""); sub(/\)$/, ""); settle($0) }
/^test result: / { ended = 1 }
/^test-kernel: exit status not 0$/ { status = 1 }
/^test-kernel: end / {
    if (name != "") settle("FAILED (no result)")
    if ($5 == "run") {
        any = 0
        for (i = 1; i <= found; i++) { cell($3, names[i], $4, results[i]); any += results[i] ~ /^FAILED/ }
        whole = ended && announced > 0 && announced == found && (any > 0) == (status > 0)
        if (!whole) cell($3, "(the suite as a whole)", $4, "FAILED (see its log)")
    }
    found = announced = ended = status = 0; name = ""
}
END {
    width = 20
    for (i = 1; i <= rows; i++) { split(row[i], part, SUBSEP); if (length(part[2]) > width) width = length(part[2]) }
    form = "%-" (width + 2) "s"
    for (i = 1; i <= rows; i++) {
        split(row[i], part, SUBSEP)
        if (part[1] != suite) {
            suite = part[1]
            line = sprintf("\n" form, suite)
            for (c = 1; c <= columns; c++) line = line sprintf("  %-11s", backend[c])
            print line
        }
        line = sprintf(form, "  " part[2])
        for (c = 1; c <= columns; c++) {
            text = table[suite, part[2], backend[c]]
            if (text ~ /^not run/) {
                if (!(text in note)) { note[text] = ++notes; notices[notes] = text }
                text = "not run [" note[text] "]"
            } else if (text == "") text = "-"
            line = line sprintf("  %-11s", text)
        }
        print line
    }
    if (notes) print ""
    for (i = 1; i <= notes; i++) print "[" i "] " notices[i]
    print "-: not asked for, or the suite runs once, whatever the backend."
    if (!rows) { print "nothing was run"; exit 1 }
    print failed ? failed " FAILED" : "all ok"
    exit failed > 0
}'
