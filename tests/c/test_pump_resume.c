/* Pumps with several lanes whose links are all lost, dropped and replaced again and again while a stream runs. Run it under TSan too. */
#define _GNU_SOURCE
#include "rig.h"

#include <pthread.h>

enum { TOTAL = 48 << 20, LANES = 3, QUEUE = 64 };

struct offer { int socket, resumes; };

struct stress {
    struct rig rig;
    pthread_mutex_t lock;
    struct offer queue[QUEUE];
    int queued;
    int over;
    unsigned seed;
    uint64_t got;
    int resumed;
    int failed;
    unsigned offered, taken;    /* connections, by the source and the destination */
};

static uint8_t byte_at(uint64_t i)
{
    return (uint8_t)((i * 2654435761U) >> 13);
}

static void *write_stream(void *argument)
{
    struct stress *t = argument;
    uint8_t piece[4096];

    for (uint64_t at = 0; at < TOTAL;) {
        struct pollfd p = { .fd = t->rig.xl_in[0][1], .events = POLLOUT };
        ssize_t n;

        for (size_t i = 0; i < sizeof(piece); i++)
            piece[i] = byte_at(at + i);
        CHECK(poll(&p, 1, 60000) > 0);
        n = write(p.fd, piece, TOTAL - at < sizeof(piece) ? TOTAL - at : sizeof(piece));
        if (n > 0)
            at += (uint64_t)n;
    }
    return NULL;
}

static void *read_stream(void *argument)
{
    struct stress *t = argument;
    static uint8_t piece[1 << 16];

    while (t->got < TOTAL) {
        struct pollfd p = { .fd = t->rig.xl_in[1][0], .events = POLLIN };
        ssize_t n;

        if (poll(&p, 1, 30000) <= 0) {
            fprintf(stderr, "stuck at %llu\n", (unsigned long long)t->got);
            abort();
        }
        n = read(p.fd, piece, sizeof(piece));
        for (ssize_t i = 0; i < n; i++)
            CHECK(piece[i] == byte_at(t->got + (uint64_t)i));
        if (n > 0)
            t->got += (uint64_t)n;
    }
    pthread_mutex_lock(&t->lock);
    t->over = 1;
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static int is_over(struct stress *t)
{
    int over;

    pthread_mutex_lock(&t->lock);
    over = t->over;
    pthread_mutex_unlock(&t->lock);
    return over;
}

static int offer(struct stress *t, int resumes)
{
    int pair[2];

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    pthread_mutex_lock(&t->lock);
    CHECK(t->queued < QUEUE);
    t->queue[t->queued++] = (struct offer){ pair[1], resumes };
    t->offered++;
    pthread_mutex_unlock(&t->lock);
    return pair[0];
}

/* Nothing is sent over a further connection before ACCEPT (J4): wait until the destination has taken what was offered. */
static void await_accept(struct stress *t)
{
    int waits = 1;

    for (int i = 0; waits && i < 100000; i++) {
        pthread_mutex_lock(&t->lock);
        waits = t->taken != t->offered;
        pthread_mutex_unlock(&t->lock);
        if (waits)
            usleep(100);
    }
}

static void forget(int *sockets, int *n, int number)
{
    for (int i = 0; i < *n; i++)
        if (sockets[i] == number) {
            close(number);
            sockets[i] = sockets[--*n];
            return;
        }
    CHECK(!"a lane that nobody has was lost");
}

static void close_all(int *sockets, int *n)
{
    while (*n > 0)
        close(sockets[--*n]);
}

static void *source(void *argument)
{
    struct stress *t = argument;
    struct xs_pump *pump = t->rig.pump[0];
    int socket_of[XS_LANES_MAX * 2], n = 0, again = 1;
    unsigned seed = t->seed;
    int live_for = 0;

    while (!is_over(t)) {
        int event;

        if (again) {
            int old[XS_LANES_MAX * 2], olds = n, first = offer(t, 1);

            memcpy(old, socket_of, sizeof(old));
            for (int i = 0; i < olds; i++)
                shutdown(old[i], SHUT_RDWR);
            n = 0;
            CHECK(xs_pump_attach(pump, link_of(0), first) == XS_OK);
            socket_of[n++] = first;
            close_all(old, &olds);
            t->resumed++;
            again = 0;
            live_for = 0;
        }
        event = xs_pump_run(pump, (int)(rand_r(&seed) % 5));
        live_for++;
        if (event == XS_EV_LANE_LOST)
            forget(socket_of, &n, stats_of(&t->rig, 0).lane_socket);
        else if (event == XS_EV_LOST) {
            int why = stats_of(&t->rig, 0).lost;

            if (why != XS_LOST_CLOSED && why != XS_LOST_RESET)
                t->failed = why, fprintf(stderr, "source: lost by %d\n", why), abort();
            again = 1;
        } else if (n < LANES && rand_r(&seed) % 3 == 0) {
            int more = offer(t, 0);

            struct xs_link *link = link_of(0);

            await_accept(t);
            if (xs_pump_attach(pump, link, more) == XS_OK)
                socket_of[n++] = more;
            else
                xs_link_free(link), close(more);
        } else if (live_for > 3 && rand_r(&seed) % 40 == 0 && n > 0) {
            shutdown(socket_of[rand_r(&seed) % (unsigned)n], SHUT_RDWR);
        } else if (live_for > 3 && rand_r(&seed) % 60 == 0) {
            if (xs_pump_drop(pump) == XS_OK)    /* the source gives all up, and the destination does not know */
                again = 1;
        }
    }
    t->rig.socket[0] = -1;
    xs_pump_free(pump);
    t->rig.pump[0] = NULL;
    close_all(socket_of, &n);
    return NULL;
}

static void *destination(void *argument)
{
    struct stress *t = argument;
    struct xs_pump *pump = t->rig.pump[1];
    int socket_of[QUEUE], n = 0, begun = 0;
    unsigned seed = t->seed + 77;

    while (!is_over(t)) {
        struct offer took[QUEUE];
        int count, event;

        pthread_mutex_lock(&t->lock);
        count = t->queued;
        memcpy(took, t->queue, sizeof(took));
        t->queued = 0;
        pthread_mutex_unlock(&t->lock);
        for (int i = 0; i < count; i++) {
            struct xs_link *link = link_of(1);

            if (took[i].resumes && begun)
                CHECK(xs_pump_drop(pump) == XS_OK);
            if (xs_pump_attach(pump, link, took[i].socket) != XS_OK) {
                xs_link_free(link);
                close(took[i].socket);
                CHECK(!took[i].resumes);
                continue;
            }
            begun = 1;
            if (took[i].resumes)
                close_all(socket_of, &n);
            socket_of[n++] = took[i].socket;
        }
        pthread_mutex_lock(&t->lock);
        t->taken += (unsigned)count;
        pthread_mutex_unlock(&t->lock);
        if (!begun) {
            usleep(100);
            continue;
        }
        event = xs_pump_run(pump, (int)(rand_r(&seed) % 5));
        if (event == XS_EV_LANE_LOST)
            forget(socket_of, &n, stats_of(&t->rig, 1).lane_socket);
        else if (event == XS_EV_LOST) {
            int why = stats_of(&t->rig, 1).lost;

            if (why != XS_LOST_CLOSED && why != XS_LOST_RESET)
                t->failed = why, fprintf(stderr, "destination: lost by %d\n", why), abort();
        } else if (rand_r(&seed) % 80 == 0 && n > 0)
            shutdown(socket_of[rand_r(&seed) % (unsigned)n], SHUT_RDWR);
        if (event == XS_EV_LANE_LOST || event == XS_EV_LOST) {
            struct xs_stats st = stats_of(&t->rig, 1);

            if (st.lane_lost == XS_LOST_PROTOCOL || st.lane_lost == XS_LOST_TAG || st.lane_lost == XS_LOST_HEADER)
                fprintf(stderr, "destination: a lane lost by %d\n", st.lane_lost), abort();
        }
    }
    xs_pump_free(pump);
    t->rig.pump[1] = NULL;
    close_all(socket_of, &n);
    return NULL;
}

static void stress(unsigned seed)
{
    static struct stress t;
    pthread_t thread[4];
    void *(*const role[4])(void *) = { write_stream, read_stream, source, destination };

    memset(&t, 0, sizeof(t));
    open_rig(&t.rig, 4 << 20, 50, 0);
    t.rig.socket[0] = t.rig.socket[1] = -1;
    t.seed = seed;
    pthread_mutex_init(&t.lock, NULL);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&thread[i], NULL, role[i], &t) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    fprintf(stderr, "seed %u: resumed %d times\n", seed, t.resumed);
    for (int i = 0; i < t.queued; i++)
        close(t.queue[i].socket);
    close_rig(&t.rig);
}

int main(void)
{
    unsigned seeds = getenv("SEEDS") ? (unsigned)atoi(getenv("SEEDS")) : 6;

    signal(SIGPIPE, SIG_IGN);
    for (unsigned seed = 1; seed <= seeds; seed++)
        stress(seed);
    return 0;
}
