
# Jobs and versions of cached builds: instant, and without the network.
_pexrun_builds() {
    local cur=${COMP_WORDS[COMP_CWORD]} word job= n=0 i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        [[ $word == -* ]] && continue
        n=$((n + 1))
        job=$word
    done
    if [[ $cur != -* && $n -eq 0 ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(pexrun --list --cached 2>/dev/null | cut -d' ' -f1 | sort -u)" -- "$cur")
    elif [[ $cur != -* && $n -eq 1 ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(pexrun --list --cached "$job" 2>/dev/null | cut -d' ' -f2)" -- "$cur")
    elif [[ $n -ge 2 ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    else
        _pexrun "$@"
    fi
}
complete -F _pexrun_builds pexrun
