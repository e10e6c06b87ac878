# bash completion for xensecure, xensecured, xensecure-launcher and xensecurectl. It needs no bash-completion package to work.

# The words that begin as the present one does.
_xensecure_words() {
    local word
    COMPREPLY=()
    while read -r word; do [[ -n $word ]] && COMPREPLY+=("$word"); done < <(compgen -W "$1" -- "${COMP_WORDS[COMP_CWORD]}")
}

# The hosts that this one has met: root alone may read them.
_xensecure_hosts() {
    local peers
    peers=$(xensecurectl peers --json 2>/dev/null | grep -oE '"name": "[A-Za-z0-9._-]+"' | cut -d'"' -f4)
    _xensecure_words "$peers"
}

# The domains of this host, by their own names.
_xensecure_domains() {
    local domains
    domains=$(xl list 2>/dev/null | sed -n '1d; s/ .*//; s/--incoming$//; s/--migratedaway$//; /^[A-Za-z0-9_][A-Za-z0-9_.+-]*$/p' | grep -vx Domain-0)
    _xensecure_words "$domains"
}

_xensecure_files() {
    local file
    COMPREPLY=()
    while read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
    compopt -o filenames 2>/dev/null
}

# What -o sets.
_xensecure_keys='port= bind= family=any family=inet family=inet6 quiet=true verbose= connect_timeout= keepalive= silence= resume_window= final_window= elide=on elide=off compress=off compress=auto compress=zstd bwlimit= lanes= neighbour=report neighbour=refuse neighbour=off interface= peer= address='

# xensecure [options] HOST xl ... migrate-receive ...
_xensecure() {
    local options='-4 -6 -p -b -F -o -q -v -h -V --config --help --version'
    local word i host=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
        -p | -b | -F | -o | --config) ((i++)) ;;
        -*) ;;
        *) host=$word && break ;;
        esac
    done
    if [[ -n $host ]]; then
        case ${COMP_WORDS[COMP_CWORD - 1]} in
        "$host") _xensecure_words xl ;;
        *) _xensecure_words '-t -T -v migrate-receive -e -d -p -r --colo --coloft-script --userspace-colo-proxy' ;;
        esac
        return
    fi
    case ${COMP_WORDS[COMP_CWORD - 1]} in
    -F | --config) _xensecure_files ;;
    -p | -b) COMPREPLY=() ;;
    -o) _xensecure_words "$_xensecure_keys" && compopt -o nospace 2>/dev/null ;;
    *) if [[ ${COMP_WORDS[COMP_CWORD]} == -* ]]; then _xensecure_words "$options"; else _xensecure_hosts; fi ;;
    esac
}

# xensecured, xensecure-launcher
_xensecure_daemon() {
    local options='--config --version --help'
    [[ ${1##*/} == xensecured ]] && options="--listen $options"
    case ${COMP_WORDS[COMP_CWORD - 1]} in
    --config) _xensecure_files ;;
    *) _xensecure_words "$options" ;;
    esac
}

# xensecurectl [options] COMMAND [options] [HOST]
_xensecurectl() {
    local word i command=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
        --config) ((i++)) ;;
        -*) ;;
        *) command=$word && break ;;
        esac
    done
    case ${COMP_WORDS[COMP_CWORD - 1]} in
    --config) _xensecure_files && return ;;
    --ttl) _xensecure_words '10m 30m 2h 7d' && return ;;
    --domain) _xensecure_domains && return ;;
    --address | --ssh | --ssh-option | --remote-command | --force | -n | -j) COMPREPLY=() && return ;;
    --to | --from) _xensecure_hosts && return ;;
    policy) [[ ${COMP_WORDS[COMP_CWORD]} != -* ]] && _xensecure_words check && return ;;
    check) [[ $command == policy && ${COMP_WORDS[COMP_CWORD]} != -* ]] && _xensecure_domains && return ;;
    -o)
        case $command in
        enroll) COMPREPLY=() && return ;;
        evacuate) _xensecure_words "$_xensecure_keys" && compopt -o nospace 2>/dev/null && return ;;
        esac
        ;;
    esac
    case $command:${COMP_WORDS[COMP_CWORD]} in
    :-*) _xensecure_words '--config --version --help' ;;
    :*) _xensecure_words 'init invite withdraw join enroll peers show rotate forget status history resume policy evacuate metrics doctor' ;;
    invite:*) _xensecure_words '--ttl --address --help' ;;
    enroll:*) _xensecure_words '--ssh -o --ssh-option --remote-command --help' ;;
    peers:*) _xensecure_words '--json --help' ;;
    show:-* | status:-*) _xensecure_words '--json --help' ;;
    history:-*) _xensecure_words '--json -n --help' ;;
    metrics:-*) _xensecure_words '--write --help' ;;
    resume:-*) _xensecure_words '--force --help' ;;
    policy:-*) _xensecure_words '--to --from --help' ;;
    evacuate:-*) _xensecure_words '--to -j --dry-run -p --live -o --help' ;;
    doctor:-*) _xensecure_words '--domain --json --help' ;;
    *:-*) _xensecure_words '--help' ;;
    show:* | rotate:* | forget:* | doctor:*) _xensecure_hosts ;;
    status:* | history:* | resume:* | evacuate:*) _xensecure_domains ;;
    *) COMPREPLY=() ;;
    esac
}

complete -F _xensecure xensecure
complete -F _xensecure_daemon xensecured xensecure-launcher
complete -F _xensecurectl xensecurectl
