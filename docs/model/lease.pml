/* Who may accept writes, and until when: leader key, lease, fence time, Acquire and Release under way, promises.

   Three members, one etcd. Time passes in ticks. A member relies on what it was told for D ticks counted from when it
   *asked*, or for one more: its clock may be that much slower than the others'. etcd and those who promise count a
   whole TTL. Every message may be lost, late, or answered late: an answer is one more step that need not happen.
   A frozen agent is one that takes no step; what its engine still accepts then passes no proxy once the time is over,
   so "reachable" is: the engine is primary, and the member's time is not over.

   Asserted: never are two members reachable primaries. README.md tells what is left out. */

#define N 3
#define TTL 2
#ifndef TERMS
#define TERMS 2 /* the first leader's term, and how many elections after it */
#endif

#ifdef NO_MARGIN
#define D TTL
#else
#define D (TTL - 1)
#endif

byte key = 1;      /* etcd: member + 1 who holds the leader key; 0 = nobody */
byte term = 1;     /* etcd: of the last leader */
byte key_left = TTL;
byte released = 0; /* etcd: the leader of this term let go by itself */

byte lead[N];      /* the term a member holds by its own book; 0 = none */
byte left[N];      /* ticks until it fences itself */
bool prim[N];      /* its engine accepts writes */
byte spent[N];     /* no term up to this one is used again; on disk */
byte voted[N];     /* highest election it has cast a ballot for; on disk */
byte promise[N];   /* ticks it has promised not to stand for */

byte acq[N];       /* Acquire under way: the term asked for; 0 = none */
byte acq_left[N];  /* how long its answer may be relied on */
#define NONE 0
#define SENT 1
#define GIVEN_UP 2 /* the member waits no more, yet it may take effect */
#define WON 3      /* it took effect, the answer is on its way */
byte acq_is[N];
byte ren_term[N];  /* a renewal's confirmation on its way: the term it speaks of; 0 = none */
byte ren_left[N];
byte rel[N];       /* Release under way: the term given up */
byte asked[N];     /* failsafe: members that have granted the question under way */
byte ask_left[N];  /* 0 = no question */

#define down(x) if :: x > 0 -> x-- :: else fi
#define max_to(x, y) if :: x < y -> x = y :: else fi
#define reachable(i) (prim[i] && left[i] > 0)
#define check() assert(reachable(0) + reachable(1) + reachable(2) <= 1)
#define binds(i, t) (promise[i] > 0 && released != (t)) /* a promise, until the one it was given to has let go */

#ifdef PROMISE_IGNORED
#define may_stand(i) true
#else
#define may_stand(i) (!binds(i, term))
#endif
#ifdef LATE_LEADER_PROMOTES
#define may_open(i) true
#else
#define may_open(i) (!binds(i, lead[i] - 1))
#endif
#ifdef PROMISE_AFTER_VOTE
#define may_promise(j, t) (!leads(j) && acq_is[j] != SENT && acq_is[j] != WON)
#else
#define may_promise(j, t) (!leads(j) && acq_is[j] != SENT && acq_is[j] != WON && voted[j] <= t)
#endif
#ifdef ONE_PROMISE
#define all_granted(i) (asked[i] != 0)
#else
#define all_granted(i) ((asked[i] | (1 << i)) == 7)
#endif
#ifdef NO_SPENT
#define usable(i, t) ((t) >= lead[i])
#else
#define usable(i, t) ((t) >= lead[i] && (t) > spent[i])
#endif
#define leads(i) (lead[i] > 0 && left[i] > 0)
#define candidate(i) (key == 0 && term < TERMS && !prim[i] && may_stand(i))
#define goes_on(i) (key == 0 && term < TERMS && prim[i] && leads(i) && lead[i] == term) /* by the promises */

inline forget(i) { lead[i] = 0; left[i] = 0; asked[i] = 0; ask_left[i] = 0; ren_term[i] = 0; ren_left[i] = 0 }

inline fence(i) { prim[i] = 0 }

/* The hub confirmed that member i leads in `term`, in answer to what was sent `rest` ticks ago. */
inline confirmed(i, t, rest) {
    if
    :: usable(i, t) ->
        if :: t > lead[i] -> lead[i] = t; left[i] = 0; asked[i] = 0; ask_left[i] = 0 :: else fi;
        max_to(left[i], rest)
    :: else
    fi
}

proctype member(byte me) {
    byte j;
end:
    do
    /* --- renewal: confirmed by a read after the keepalive; the request was sent any time before --- */
    :: atomic { key == me + 1 && ren_term[me] == 0 ->
            key_left = TTL; ren_term[me] = term;
            if :: ren_left[me] = D :: ren_left[me] = 1 fi }
#ifdef KEEPALIVE_ONLY
    :: d_step { key == me + 1 && ren_term[me] == 0 -> ren_term[me] = term; ren_left[me] = D }
#endif
    :: atomic { ren_term[me] > 0 ->
#ifdef COUNTS_FROM_ANSWER
            ren_left[me] = D;
#endif
            if :: ren_left[me] > 0 -> if :: true :: ren_left[me]++ fi :: else fi;
            confirmed(me, ren_term[me], ren_left[me]); ren_term[me] = 0; ren_left[me] = 0; check() }
    :: d_step { ren_term[me] > 0 -> ren_term[me] = 0; ren_left[me] = 0 } /* the answer is lost */

    /* --- failsafe: all others are asked; each grants by what it knows itself --- */
    :: d_step { lead[me] > 0 && left[me] > 0 && prim[me] && ask_left[me] == 0 -> ask_left[me] = D; asked[me] = 0 }
    :: atomic { ask_left[me] > 0 ->
            j = 0;
            do :: j < N - 1 -> j++ :: break od;
            if
            :: j != me && !(asked[me] & (1 << j)) && may_promise(j, lead[me]) -> promise[j] = TTL; asked[me] = asked[me] | (1 << j)
            :: else
            fi; j = 0 }
    :: atomic { ask_left[me] > 0 && all_granted(me) ->
            if :: true :: ask_left[me]++ fi;
            max_to(left[me], ask_left[me]); ask_left[me] = 0; asked[me] = 0; check() }
    :: d_step { ask_left[me] > 0 -> ask_left[me] = 0; asked[me] = 0 } /* an answer did not come */

    /* --- fence; also of an engine that ended by itself --- */
    :: d_step { prim[me] -> fence(me) }

    /* --- giving up: of an engine that is down, and the term is spent before the request leaves --- */
    :: d_step { lead[me] > 0 && !prim[me] && rel[me] == 0 ->
            rel[me] = lead[me]; spent[me] = lead[me]; forget(me) }
    :: d_step { rel[me] > 0 ->
            if :: key == me + 1 && term == rel[me] -> key = 0; key_left = 0; released = term :: else fi;
            rel[me] = 0 }

    /* --- election: a vote, then the Acquire; compared in etcd are the key's absence and the term --- */
    :: d_step { candidate(me) && voted[me] <= term -> voted[me] = term + 1 }
    :: d_step { acq[me] == 0 && ((candidate(me) && voted[me] == term + 1) || goes_on(me)) ->
            acq[me] = term + 1; acq_left[me] = D; acq_is[me] = SENT }
    :: d_step { acq_is[me] == SENT || acq_is[me] == GIVEN_UP ->
            if
            :: key == 0 && term + 1 == acq[me] ->
                key = me + 1; term = acq[me]; key_left = TTL;
                if :: acq_is[me] == SENT -> acq_is[me] = WON :: else -> acq[me] = 0; acq_left[me] = 0; acq_is[me] = NONE fi
            :: else -> acq[me] = 0; acq_left[me] = 0; acq_is[me] = NONE
            fi }
    :: atomic { acq_is[me] == WON ->
            if :: acq_left[me] > 0 -> if :: true :: acq_left[me]++ fi :: else fi;
            confirmed(me, acq[me], acq_left[me]);
            acq[me] = 0; acq_left[me] = 0; acq_is[me] = NONE; check() }
    :: d_step { acq_is[me] == SENT -> acq_is[me] = GIVEN_UP; acq_left[me] = 0 } /* or the agent was restarted */
    :: d_step { acq_is[me] == WON -> acq[me] = 0; acq_left[me] = 0; acq_is[me] = NONE } /* the answer is lost */

    /* --- promotion, or a start in place --- */
    :: d_step { leads(me) && !prim[me] && may_open(me) -> prim[me] = 1; check() }

    /* --- a restarted agent does not know what it has promised; it waits for a TTL, as if it had just promised --- */
#ifdef PROMISE_FORGOTTEN
    :: d_step { promise[me] > 0 -> promise[me] = 0 }
#endif
    od
}

proctype etcd() {
end:
    do
    :: d_step { key > 0 && key_left == 0 -> key = 0 }
    :: d_step { key > 0 && key_left < TTL -> key_left = TTL } /* a new etcd leader: every lease has its full time again */
    od
}

proctype clock() {
end:
    do
    :: d_step {
            down(key_left);
            down(left[0]); down(left[1]); down(left[2]);
            down(promise[0]); down(promise[1]); down(promise[2]);
            down(acq_left[0]); down(acq_left[1]); down(acq_left[2]);
            down(ren_left[0]); down(ren_left[1]); down(ren_left[2]);
            down(ask_left[0]); down(ask_left[1]); down(ask_left[2]);
            check() }
    od
}

init {
    atomic {
        lead[0] = 1; left[0] = D; prim[0] = 1;
        run member(0); run member(1); run member(2); run etcd(); run clock()
    }
}
