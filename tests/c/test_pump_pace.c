/* bwlimit in the pump: DATA of channel 0 waits, and nothing else does. Limits so low that no test waits for one to let something go. */
#define _GNU_SOURCE
#include "rig.h"

enum { PIECE = 60000, SLOW = 1000 /* bytes a second: a piece is worth a minute */ };

/* A rig whose source has sent one piece, and so is a minute in debt. */
static void indebted(struct rig *r, uint32_t keepalive_ms)
{
    static uint8_t piece[PIECE];

    rig_bwlimit = SLOW;
    rig_elide = 0;
    open_rig(r, 1 << 20, keepalive_ms, 0);
    attach(r);
    put(r->xl_in[0][1], (const char *)piece, PIECE);
    settle(r);
    CHECK(stats_of(r, 1).delivered[0] == PIECE && stats_of(r, 0).delivered[0] == PIECE);
}

/* The next piece waits, and goes when the limit is lifted. */
static void held(void)
{
    static uint8_t piece[PIECE];
    struct rig r;

    indebted(&r, 0);
    put(r.xl_in[0][1], (const char *)piece, PIECE);
    settle(&r);
    run(&r, 0, 20), run(&r, 1, 0);
    CHECK(stats_of(&r, 0).channel_bytes[0] == PIECE);
    xs_pump_limit(r.pump[0], 0);
    settle(&r);
    CHECK(stats_of(&r, 1).delivered[0] == 2 * PIECE);
    close_rig(&r);
}

/* xl's 44 bytes pass, and so do its answers, keepalives, and ABORT behind a piece that waits. */
static void control_passes(void)
{
    static uint8_t piece[PIECE];
    struct rig r;
    uint64_t before;

    indebted(&r, 30);
    put(r.xl_in[0][1], "domain is yours, you are cleared to unpause", 44);
    settle(&r);
    CHECK(stats_of(&r, 1).delivered[0] == PIECE + 44);
    put(r.xl_in[0][1], (const char *)piece, PIECE);
    settle(&r);
    CHECK(stats_of(&r, 0).channel_bytes[0] == PIECE + 44);
    put(r.xl_out[1][1], "unpause results", 15);
    settle(&r);
    expect(r.xl_out[0][0], "unpause results", 15);
    before = stats_of(&r, 0).frames_sent;
    run(&r, 0, 100);
    CHECK(stats_of(&r, 0).frames_sent > before);
    CHECK(xs_pump_abort(r.pump[0], 8, (const uint8_t *)"stop", 4, 20) == XS_OK);
    run(&r, 1, 0);
    CHECK(r.last[1] == XS_EV_ABORTED && stats_of(&r, 1).reason == 8);
    close_rig(&r);
}

/* END waits for the last byte, and comes after it. */
static void end_follows(void)
{
    static uint8_t piece[PIECE];
    struct rig r;

    indebted(&r, 0);
    put(r.xl_in[0][1], (const char *)piece, PIECE);
    close_fd(&r.xl_in[0][1]);
    settle(&r);
    CHECK(r.inputs_ended == 0);
    xs_pump_limit(r.pump[0], 1ULL << 40);
    run(&r, 0, 200);            /* the debt at the old rate is worth 100 ms at most */
    settle(&r);
    CHECK(r.inputs_ended == 1 && stats_of(&r, 1).delivered[0] == 2 * PIECE);
    finish(&r, 0);
    close_rig(&r);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    RUN(held);
    RUN(control_passes);
    RUN(end_follows);
    return 0;
}
