/* bwlimit's token bucket, on a clock of the test's. */
#include "harness.h"

#include "../../csrc/pace.h"

static const int64_t MS = 1000000, SECOND = 1000000000;

/* Send frames of that size for so many seconds, polling every ms as the pump does. Returns the bytes that have gone. */
static uint64_t send_for(struct xs_pace *p, size_t frame, int64_t *now, int64_t seconds)
{
    int64_t end = *now + seconds * SECOND, when;
    uint64_t sent = 0;

    while (*now < end) {
        when = xs_pace_when(p, frame, *now);
        if (when > *now) {
            *now = (when + MS - 1) / MS * MS;
            continue;
        }
        xs_pace_sent(p, frame, *now);
        sent += frame;
    }
    return sent;
}

/* Over ten seconds the rate is right to 3 %, whatever the limit and the size of frames. */
static void rates(void)
{
    static const size_t frames[] = { 500, 5000, 65536, 524320 };
    static const uint64_t limits[] = { 1 << 20, 10 << 20, 100 << 20, 1 << 30 };

    for (size_t f = 0; f < sizeof(frames) / sizeof(frames[0]); f++)
        for (size_t l = 0; l < sizeof(limits) / sizeof(limits[0]); l++) {
            struct xs_pace p = { 0 };
            int64_t now = 5 * SECOND;
            double share;

            xs_pace_set(&p, limits[l], now);
            (void)send_for(&p, frames[f], &now, 1);     /* the first burst */
            share = (double)send_for(&p, frames[f], &now, 10) / (double)limits[l] / 10;
            CHECK(share > 0.97 && share < 1.03 + (double)frames[f] / (double)limits[l] / 10);
        }
}

/* After a pause, however long, no more goes at once than 100 ms are worth, and a frame. */
static void bursts(void)
{
    struct xs_pace p = { 0 };
    int64_t now = SECOND;
    size_t sent = 0;

    xs_pace_set(&p, 100 << 20, now);
    (void)send_for(&p, 65536, &now, 1);
    now += 3600 * SECOND;
    while (xs_pace_when(&p, 65536, now) == now) {
        xs_pace_sent(&p, 65536, now);
        sent += 65536;
    }
    CHECK(sent > 10 << 20 && sent <= (10 << 20) + 2 * 65536);
}

/* No limit holds nothing; a limit that is lifted, raised or lowered holds at once. */
static void changes(void)
{
    struct xs_pace p = { 0 };
    int64_t now = SECOND;

    for (int i = 0; i < 1000; i++) {
        CHECK(xs_pace_when(&p, 1 << 20, now) == now);
        xs_pace_sent(&p, 1 << 20, now);
    }
    xs_pace_set(&p, 1 << 20, now);
    CHECK(xs_pace_when(&p, 1 << 20, now) == now);
    xs_pace_sent(&p, 60 << 20, now);
    CHECK(xs_pace_when(&p, 1 << 20, now) > now + 55 * SECOND);
    xs_pace_set(&p, 100 << 20, now);
    CHECK(xs_pace_when(&p, 1 << 20, now) <= now + SECOND / 10);
    xs_pace_set(&p, 0, now);
    CHECK(xs_pace_when(&p, 1 << 20, now) == now);
}

/* A message of xl's passes a frame that is not paid for yet; a stream of small frames does not get round the limit. */
static void small_frames(void)
{
    struct xs_pace p = { 0 };
    int64_t now = SECOND;
    size_t passed = 0;

    xs_pace_set(&p, 1 << 20, now);
    xs_pace_sent(&p, 512 << 10, now);
    now += 200 * MS;
    CHECK(xs_pace_when(&p, 512 << 10, now) > now + 100 * MS);
    CHECK(xs_pace_when(&p, 44, now) == now);
    while (xs_pace_when(&p, 44, now) == now) {
        xs_pace_sent(&p, 44 + 32, now);
        passed += 44 + 32;
    }
    CHECK(passed > 3900 && passed <= 4200);
    CHECK(xs_pace_when(&p, 512 << 10, now) > now + 200 * MS);
}

int main(void)
{
    RUN(rates);
    RUN(bursts);
    RUN(changes);
    RUN(small_frames);
    return 0;
}
