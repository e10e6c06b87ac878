#include "weigh.h"

#include <string.h>

enum {
    MS = 1000000,               /* ns */
    /* Long beside one frame on a line of 1 Gbit/s (4 ms) and one filling of a socket's buffer, short beside the second in which a change is to
     * be noticed. */
    WINDOW = 50 * MS,
    CREDIT_SHARE = 100,         /* a hundredth of the time may go into looking */
    CREDIT_MAX = 4 * MS,        /* four frames at 500 MB/s: enough to judge by */
    TRIAL_EVERY = 1000 * MS,
    /* ... and no more of the time than 1/64: on a line far slower than the compressor's input a trial has to wait for a full buffer. */
    TRIAL_SHARE = 64,
    /* Before a trial: longer than it takes to fill with compressed frames what poll calls room, a third of a socket's buffer; or the bursts between
     * would look like a line that takes all. */
    LONG_WINDOW = 500 * MS,
    /* A trial without a full link: longer than it takes to fill a socket's buffer of 4 MiB (net.ipv4.tcp_wmem) on a fast line. */
    TRIAL_LEN = 20 * MS,
    TRIAL_CONTENT = 8 << 20,    /* bytes */
    TRIAL_FULL = 10 * MS,       /* a trial with one: how long its pace is measured */
    TRIAL_MAX = 200 * MS        /* nothing comes from xl: no judgement */
};

/* Hysteresis: what a change of state must promise. */
static const double ENTER_GAIN = 1.15, LEAVE_GAIN = 1.05;
/* How much of an estimate the newest value is. */
static const double NEWEST = 0.25;
/* Above it compressing brings too little to be asked for: as in compress.c. */
static const double SHARE_MAX = 15.0 / 16;

static void start_tally(struct xs_weigh_tally *t, int64_t now)
{
    memset(t, 0, sizeof(*t));
    t->start = now;
}

static void start_window(struct xs_weigh *w, int64_t now)
{
    start_tally(&w->tally, now);
}

static void enter(struct xs_weigh *w, enum xs_weigh_state state, int64_t now)
{
    w->state = state;
    w->full_since = 0;
    w->looking = 0;
    w->began = now;
    start_window(w, now);
    start_tally(&w->longer, now);
}

void xs_weigh_init(struct xs_weigh *w, int64_t now)
{
    memset(w, 0, sizeof(*w));
    w->credit = CREDIT_MAX;
    enter(w, XS_WEIGH_PLAIN, now);
}

/* Would compressing beat what this window did, without? */
static int is_better_packed(const struct xs_weigh *w, int64_t now)
{
    const struct xs_weigh_tally *t = &w->tally;
    double elapsed = (double)(now - t->start), content = (double)t->content;
    double other, on_line, in_cpu;

    if (w->time <= 0 || w->share > SHARE_MAX || t->content == 0)
        return 0;
    other = (elapsed - (double)t->blocked - (double)t->packing) / content;     /* reading, sealing, sending; and waiting for xl */
    on_line = w->share * elapsed / (double)t->wire;
    in_cpu = w->time + (other > 0 ? other : 0);
    return elapsed / content > ENTER_GAIN * (on_line > in_cpu ? on_line : in_cpu);
}

/* A window of PLAIN is over. */
static void judge_plain(struct xs_weigh *w, int64_t now)
{
    int64_t elapsed = now - w->tally.start;
    int held_up = w->tally.blocked > elapsed / 2;

    w->credit += elapsed / CREDIT_SHARE;
    if (w->credit > CREDIT_MAX)
        w->credit = CREDIT_MAX;
    if (held_up && w->looking && is_better_packed(w, now)) {
        w->next_trial = now + TRIAL_EVERY;
        enter(w, XS_WEIGH_PACKED, now);
        return;
    }
    w->looking = held_up;
    start_window(w, now);
}

/* A window of PACKED is over. */
static void judge_packed(struct xs_weigh *w, int64_t now)
{
    const struct xs_weigh_tally *t = &w->tally;
    struct xs_weigh_tally *l = &w->longer;
    int64_t elapsed = now - l->start;

    if (t->content > 0 && (double)t->wire > SHARE_MAX * (double)t->content) {
        enter(w, XS_WEIGH_PLAIN, now);          /* it has become incompressible */
        return;
    }
    l->blocked += t->blocked;
    l->packing += t->packing;
    l->content += t->content;
    start_window(w, now);
    if (elapsed < LONG_WINDOW)
        return;
    if (l->blocked < elapsed / 4 && l->packing > elapsed / 3 && now >= w->next_trial) {
        w->packed_rate = (double)l->content / (double)elapsed;
        enter(w, XS_WEIGH_TRIAL, now);
        return;
    }
    start_tally(l, now);
}

/* The trial is over: was it faster? rate: bytes of content a ns. */
static void end_trial(struct xs_weigh *w, double rate, int64_t now)
{
    int64_t pause = TRIAL_SHARE * (now - w->began);

    w->next_trial = now + (pause > TRIAL_EVERY ? pause : TRIAL_EVERY);
    enter(w, rate > LEAVE_GAIN * w->packed_rate ? XS_WEIGH_PLAIN : XS_WEIGH_PACKED, now);
}

/* Has a trial lasted long enough? */
static void judge_trial(struct xs_weigh *w, int64_t now)
{
    const struct xs_weigh_tally *t = &w->tally;
    int64_t elapsed = now - t->start;

    if (w->full_since != 0) {
        /* From when it was full the link took what has been counted since: what its buffer had room for before says nothing. */
        if (now - w->full_since >= TRIAL_FULL)
            end_trial(w, (double)t->content / (double)(now - w->full_since), now);
    } else if (elapsed >= TRIAL_LEN && t->content >= TRIAL_CONTENT) {
        end_trial(w, (double)t->content / (double)elapsed, now);
    } else if (elapsed >= TRIAL_MAX) {
        end_trial(w, 0, now);
    }
}

/* Is the next frame to be compressed? */
int xs_weigh_choose(struct xs_weigh *w, int64_t now)
{
    switch (w->state) {
    case XS_WEIGH_PLAIN:
        if (now - w->tally.start >= WINDOW)
            judge_plain(w, now);
        break;
    case XS_WEIGH_PACKED:
        if (now - w->tally.start >= WINDOW)
            judge_packed(w, now);
        break;
    case XS_WEIGH_TRIAL:
        judge_trial(w, now);
        break;
    }
    return w->state == XS_WEIGH_PACKED || (w->state == XS_WEIGH_PLAIN && w->looking && w->credit > 0);
}

/* Let a new value into an estimate. */
static void learn(double *estimate, double value)
{
    *estimate = *estimate <= 0 ? value : (1 - NEWEST) * *estimate + NEWEST * value;
}

/* A frame was made: whether the compressor was asked, and for how long; bytes of its content and on the line. */
void xs_weigh_made(struct xs_weigh *w, int asked, int64_t packing, size_t content, size_t wire)
{
    w->tally.packing += packing;
    w->tally.content += content;
    w->tally.wire += wire;
    if (!asked || content == 0)
        return;
    if (w->state == XS_WEIGH_PLAIN)
        w->credit -= packing;
    learn(&w->share, (double)wire / (double)content);
    learn(&w->time, (double)packing / (double)content + 1e-3);
}

/* The link has taken nothing from then until now, although there was something to send. */
void xs_weigh_blocked(struct xs_weigh *w, int64_t from, int64_t now)
{
    w->tally.blocked += now - (from > w->tally.start ? from : w->tally.start);
    if (w->state == XS_WEIGH_TRIAL && w->full_since == 0) {
        w->full_since = from > w->tally.start ? from : w->tally.start;
        w->tally.content = w->tally.wire = 0;
    }
}
