# Kills what carries our mark when standard input ends. $0: our name, $1: the id of the engine process.
trap '' INT TERM HUP
while read -r _; do :; done
ulimit -Sm "$(ulimit -Hm)"
find_jobs() {
    for process in /proc/[0-9]*; do
        { numbered "$1" <"$process/limits" || tr '\0' '\n' <"$process/environ" |
            grep -qE "^IPBROKER_ENGINE=([^:]*:)*$1(:|\$)"; } 2>/dev/null || continue
        echo "${process#/proc/}"
    done
}
# Whether a process has the number of one of our jobs, as sweep.rs makes it.
numbered() {
    while read -r max resident set soft _; do
        [ "$max $resident $set" = "Max resident set" ] || continue
        (( soft >> 34 == (1 << 28 | 16#${1:0:7}) ))
        return
    done
    return 1
}
jobs=$(find_jobs "$1")
[ -z "$jobs" ] || { kill -TERM $jobs; kill -CONT $jobs; sleep "${GRACE:-0.5}"; } 2>/dev/null
for round in 1 2 3 4 5; do
    jobs=$(find_jobs "$1")
    [ -n "$jobs" ] || break
    kill -KILL $jobs 2>/dev/null
    sleep 0.2
done
