
# Jobs and versions of cached builds: instant, and without the network.
_pexrun_jobs() {
    compadd -- $(pexrun --list --cached 2>/dev/null | cut -d' ' -f1 | sort -u)
}
_pexrun_builds() {
    if (( CURRENT == 1 )); then
        compadd -- $(pexrun --list --cached "$line[1]" 2>/dev/null | cut -d' ' -f2)
    else
        _files
    fi
}
