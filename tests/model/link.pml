/* TCP connections after the key exchange of section 3, which is one step here: who speaks over them is proved. Frames keep their order and come once
 * (F3), or the link is lost. Each side sees a loss when it does: by FIN or reset behind what had come before, or by silence (F10). */

#define NONE LINKS

/* The destination's end. */
#define CLOSED 0
#define PENDING 1       /* a receiver's that has not seen RESUME */
#define VISITS 2        /* its keeper asks */
#define LANE 3          /* on its way to the session's receiver, or there */

chan up[LINKS] = [QUEUE] of { byte };           /* source to destination */
chan down[LINKS] = [QUEUE] of { byte };
bool carries[LINKS];                            /* false: cut, what is sent vanishes */
bool source_end[LINKS];
byte destination_end[LINKS];

inline flush(queue)
{
    do
    :: nempty(queue) -> queue?_
    :: empty(queue) -> break
    od;
    skip        /* a d_step must not end with a loop */
}

/* What is in flight to an end that is closed is nobody's; what comes from it may still arrive. */
inline source_closes(link)
{
    if
    :: link != NONE ->
        source_end[link] = false;
        flush(down[link]);
        if :: destination_end[link] == CLOSED -> flush(up[link]); carries[link] = false :: else fi
    :: else
    fi
}

inline destination_closes(link)
{
    if
    :: link != NONE ->
        destination_end[link] = CLOSED;
        flush(up[link]);
        if :: !source_end[link] -> flush(down[link]); carries[link] = false :: else fi
    :: else
    fi
}

inline source_sends(link, frame)
{
    if :: carries[link] && destination_end[link] != CLOSED -> up[link]!frame :: else fi
}

inline destination_sends(link, frame)
{
    if :: carries[link] && source_end[link] -> down[link]!frame :: else fi
}

/* Cut: all that was in flight is lost, either way. */
inline cut(link)
{
    flush(up[link]);
    flush(down[link]);
    carries[link] = false
}

#define source_sees_loss(link)          (link != NONE && empty(down[link]) && (!carries[link] || destination_end[link] == CLOSED))
#define destination_sees_loss(link)     (link != NONE && empty(up[link]) && (!carries[link] || !source_end[link]))
#define is_free(link)                   (!source_end[link] && destination_end[link] == CLOSED)
