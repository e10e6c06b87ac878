/*
 * The pump's threads. With one lane there is none but the caller's. With more each lane has one, so that several cores seal and open, and
 * the caller's serves xl's pipes; whoever has to wait does so in poll, and is woken by an eventfd.
 */
#define _GNU_SOURCE
#include "pump_private.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <sys/eventfd.h>

/* Make locks. Returns XS_OK or XS_ENOMEM. */
int xs_pump_threads_init(struct xs_pump *pump)
{
    pump->wake = -1;
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        pump->lane[l].wake = -1;
    if (pthread_mutex_init(&pump->lock, NULL) != 0)
        return XS_ENOMEM;
    if (pthread_cond_init(&pump->taken, NULL) != 0) {
        (void)pthread_mutex_destroy(&pump->lock);
        return XS_ENOMEM;
    }
    return XS_OK;
}

/* Destroy what xs_pump_threads_init made; no thread is left. */
void xs_pump_threads_free(struct xs_pump *pump)
{
    if (pump->wake >= 0)
        (void)close(pump->wake);
    (void)pthread_cond_destroy(&pump->taken);
    (void)pthread_mutex_destroy(&pump->lock);
}

void xs_pump_lock(struct xs_pump *pump)
{
    (void)pthread_mutex_lock(&pump->lock);
}

void xs_pump_unlock(struct xs_pump *pump)
{
    (void)pthread_mutex_unlock(&pump->lock);
}

/* Say through an eventfd that there is something to do. */
static void ring(int wake)
{
    (void)eventfd_write(wake, 1);       /* it fails when the counter is full: then it has been said */
}

/* Forget that it was said. */
static void hush(int wake)
{
    eventfd_t times;

    (void)eventfd_read(wake, &times);
}

/* The caller's thread of xs_pump_run has been woken. */
void xs_pump_hush(struct xs_pump *pump)
{
    hush(pump->wake);
}

/* Wake the caller's thread of xs_pump_run. */
void xs_pump_rouse(struct xs_pump *pump)
{
    if (pump->asleep && pump->wake >= 0)
        ring(pump->wake);
    pump->asleep = 0;
}

/* Wake a lane's thread, if it sleeps and its socket would take something. Returns 1 if it was woken. */
static int nudge(struct xs_lane *lane)
{
    if (!lane->threaded || !lane->asleep || lane->send_blocked)
        return 0;
    lane->asleep = 0;
    ring(lane->wake);
    return 1;
}

/*
 * Wake the threads of lanes that have something to send: those with something of their own, and one for a stripe that nobody has; when that
 * one has taken it and there are more, it wakes the next.
 */
void xs_pump_stir(struct xs_pump *pump)
{
    int shared = 0;

    if (pump->own == NULL)
        xs_pump_hold(pump);
    for (unsigned l = 0; l < XS_LANES_MAX; l++) {
        struct xs_lane *lane = &pump->lane[l];

        if (lane->state != LANE_LIVE || !lane->threaded || !lane->asleep)
            continue;
        switch (xs_session_offer(pump->session, l)) {
        case XS_OFFER_NONE:
            break;
        case XS_OFFER_ANY:
            shared = shared || nudge(lane);
            break;
        case XS_OFFER_OWN:
            (void)nudge(lane);
            break;
        }
    }
}

/* Wait until a lane's socket is ready, it is woken, or its time has come. */
static short wait_lane(struct xs_lane *lane)
{
    struct xs_pump *pump = lane->pump;
    struct pollfd slot[2] = {
        { .fd = lane->socket, .events = xs_lane_wants(lane) },
        { .fd = lane->wake, .events = POLLIN },
    };
    int timeout = xs_pump_wait(xs_lane_time(lane, INT64_MAX), xs_pump_now());
    int n;

    lane->asleep = 1;
    xs_pump_unlock(pump);
    n = poll(slot, 2, timeout);
    xs_pump_lock(pump);
    lane->asleep = 0;
    if (n > 0 && slot[1].revents != 0)
        hush(lane->wake);
    return n > 0 ? slot[0].revents : 0;
}

/* A lane's thread. */
static void *serve(void *argument)
{
    struct xs_lane *lane = argument;
    struct xs_pump *pump = lane->pump;

    xs_pump_lock(pump);
    while (!pump->stop && xs_lane_reads(lane)) {
        xs_lane_frames(lane);
        xs_lane_send(lane);
        if (pump->stop || !xs_lane_reads(lane))
            break;
        xs_lane_ready(lane, wait_lane(lane));
    }
    xs_pump_rouse(pump);
    xs_pump_unlock(pump);
    return NULL;
}

/* An eventfd where there is none yet. Returns XS_OK or XS_ESYSTEM. */
static int make_wake(int *wake)
{
    if (*wake < 0)
        *wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return *wake >= 0 ? XS_OK : XS_ESYSTEM;
}

/* Give a lane a thread. Returns XS_OK, or XS_ESYSTEM with errno. */
int xs_lane_start(struct xs_lane *lane)
{
    sigset_t all, before;
    int error;

    if (make_wake(&lane->pump->wake) != XS_OK || make_wake(&lane->wake) != XS_OK)
        return XS_ESYSTEM;
    /* Signals are for Python's main thread, which looks after them between two runs. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&lane->thread, NULL, serve, lane);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        errno = error;
        return XS_ESYSTEM;
    }
    lane->threaded = 1;
    return XS_OK;
}

/* Wait until a lane's thread, which has nothing more to do, has ended. The lock is held, and given back meanwhile. */
void xs_lane_join(struct xs_lane *lane)
{
    if (lane->threaded) {
        ring(lane->wake);
        (void)pthread_cond_broadcast(&lane->pump->taken);
        xs_pump_unlock(lane->pump);
        (void)pthread_join(lane->thread, NULL);
        xs_pump_lock(lane->pump);
        lane->threaded = 0;
    }
    if (lane->wake >= 0)
        (void)close(lane->wake);
    lane->wake = -1;
}

/* End all threads; their lanes stay as they are. */
void xs_pump_stop(struct xs_pump *pump)
{
    pump->stop = 1;
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        xs_lane_join(&pump->lane[l]);
    pump->stop = 0;
}
