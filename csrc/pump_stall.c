/*
 * A lane whose peer's TCP has fallen silent while other lanes live (docs/protocol.md, J6): they get its stripes long before it is lost. Called with
 * the lock held.
 */
#include "pump_private.h"

enum {
    /* ms without a byte acknowledged by the peer's TCP: one lost segment is sent anew after 1 s and, lost again, 2 s later (RFC 6298). To be wrong
     * costs what the lane's socket holds, once more over the others. */
    STALL_MS = 3000
};

/* The lane's socket is about to take bytes: where none are in flight, count the time from now on. */
void xs_lane_sends(struct xs_lane *lane)
{
    if (lane->looked != 0)
        return;
    lane->looked = xs_pump_now();
    lane->acknowledged = lane->sent;
}

/* The earlier of until and the time (ms) at which the lane's socket is to be looked at. */
int64_t xs_lane_stall_time(const struct xs_lane *lane, int64_t until)
{
    int64_t then = lane->looked + STALL_MS;

    return lane->threaded && lane->looked != 0 && then < until ? then : until;
}

/* Look at the lane's socket, if it is time: does it stand still, or go on? */
void xs_lane_watch_stall(struct xs_lane *lane)
{
    int64_t now = xs_pump_now();
    uint64_t in_flight, acknowledged;

    if (!lane->threaded || lane->looked == 0 || now - lane->looked < STALL_MS)
        return;
    in_flight = (uint64_t)xs_lane_unsent(lane);
    acknowledged = lane->sent > in_flight ? lane->sent - in_flight : 0;
    if (xs_session_stall(lane->pump->session, lane->number, in_flight > 0 && acknowledged == lane->acknowledged))
        xs_pump_stir(lane->pump);
    lane->acknowledged = acknowledged;
    lane->looked = in_flight > 0 ? now : 0;
}
