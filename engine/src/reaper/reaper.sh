# Kills what carries our mark when standard input ends. $0: our name, $1: the id of the engine process.
trap '' INT TERM HUP
while read -r _; do :; done
find_jobs() {
    for environ in /proc/[0-9]*/environ; do
        { tr '\0' '\n' <"$environ" | grep -qE "^IPBROKER_ENGINE=([^:]*:)*$1(:|\$)"; } 2>/dev/null || continue
        pid=${environ#/proc/}
        echo "${pid%/environ}"
    done
}
jobs=$(find_jobs "$1")
[ -z "$jobs" ] || { kill -TERM $jobs; kill -CONT $jobs; sleep "${GRACE:-0.5}"; } 2>/dev/null
for round in 1 2 3 4 5; do
    jobs=$(find_jobs "$1")
    [ -n "$jobs" ] || break
    kill -KILL $jobs 2>/dev/null
    sleep 0.2
done
