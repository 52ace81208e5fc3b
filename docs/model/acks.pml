/* Where acknowledged commits are, and who may lead next: the record in etcd, the engine's setting, ballots, handover.

   Three members, commits that one standby must confirm (k = 1) out of a set of names. There is no time here at all: an
   old primary goes on for ever, accepts and acknowledges whatever it can, whether or not it still leads. So what holds
   here rests on no clock, no fence and no proxy. Every request to etcd may come late or never, every view may be old.

   A log is a row of entries; an entry is the term of the primary that wrote it, 0 = none. Asserted: whoever opens as
   primary has every entry that was acknowledged before, none is acknowledged that a later primary lacks, and with all
   ballots on the table somebody is elected. README.md tells what is left out. */

#define N 3
#ifndef TERMS
#define TERMS 2
#endif
#ifndef LOG
#define LOG 1 /* entries at most, up to 2 */
#endif
#define UNKNOWN 3
#define NOBODY 0

byte key = 1;        /* etcd: member + 1 who leads; 0 = nobody */
byte term = 1;       /* etcd: of the last leader */
byte leader = 0;     /* etcd: the last leader, whether or not it still leads */
byte eras = 2;       /* etcd: the record: every acknowledged commit is of one of these terms (a bit each), */
byte era_by[TERMS + 1];    /* that is, it is on the term's leader, and on era_k of era_names. A term that is not */
byte era_k[TERMS + 1];     /* among them has acknowledged nothing. All but the present term are of former leaders */
byte era_names[TERMS + 1]; /* whose commits the present one has not put into a set of its own yet. */
byte handed = 0;     /* etcd: member + 1 that the last leader let go to; 0 = nobody */
byte let_go = 0;     /* etcd: the last leader has let go by itself */
byte ballots = 0;    /* etcd: members whose ballot for term + 1 lies there */

byte log[6];         /* member * 2 + position */
byte size[N];
byte tl[N];          /* term in which the log's timeline began */
byte fork[TERMS + 1]; /* length of the log at that moment: who has less is still on the timeline of before */
byte upstream[N];    /* member + 1 that it streams from; 0 = nobody */
byte voted[N];       /* highest election it has voted in; on disk */
byte prim[N];        /* term in which its engine was opened as primary; 0 = it is a replica */
byte spent[N];       /* it leads this term no more */
byte set_names[N];   /* the setting in force: one of these must confirm; 0 = nothing is acknowledged */
byte base[N];        /* a length reached after the setting came into force; UNKNOWN = not yet */
byte sent_eras[N];   /* the record that was sent last: the eras, and its own one's claim */
byte sent_k[N];
byte sent_names[N];
bool rec_due[N];     /* it is still on its way */
byte opened = 1;     /* ghost: the last term that a primary was opened in, and where */
byte opened_by = 0;
byte acked[2];       /* ghost: the term in which a position was acknowledged; 0 = not */

#define bit(i) (1 << (i))
#define at(i, p) log[(i) * 2 + (p)]
#define same(i, j, n) ((n) == 0 || (at(i, 0) == at(j, 0) && ((n) == 1 || at(i, 1) == at(j, 1))))
#define has(i, p) (size[i] > (p) && at(i, p) == acked[p])
#define has_all(i) ((acked[0] == 0 || has(i, 0)) && (acked[1] == 0 || has(i, 1)))
#define pos(i) (tl[i] * 4 + size[i]) /* positions are ordered by timeline first */
#define in(i, names) (((names) & bit(i)) != 0)
#define holds(i, n) (size[i] >= (n)) /* of a member that streams: its log is the primary's so far */
/* Whether any one of `a` is one of `b` when `b` claims something; a setting without names acknowledges nothing. */
#define implies(a, bk, b) ((bk) == 0 || (((a) & ~(b)) == 0))

#ifdef BALLOT_WITHOUT_DETACHING
#define left_upstream(i) true
#else
#define left_upstream(i) (upstream[i] == 0)
#endif
#ifdef FOLLOWS_AFTER_VOTING
#define may_follow(i, t) true
#else
#define may_follow(i, t) ((t) >= voted[i])
#endif
#ifdef SHRINKS_SETTING_FIRST
#define may_set(i, names) true
#else
#define may_set(i, names) (acts && implies(names, era_k[term], era_names[term]))
#endif
#ifdef ACKNOWLEDGES_BEFORE_ITS_ERA
#define acts true
#else
#define acts in(term, eras)
#endif
#ifdef RECORDS_TOO_EARLY
#define confirmed(i, j) true
#else
#define confirmed(i, j) (base[i] != UNKNOWN && upstream[j] == i + 1 && size[j] >= base[i])
#endif
#ifdef SETS_WHILE_RECORDING
#define settled(i) true
#else
#define settled(i) (!rec_due[i])
#endif

/* Every name's ballot: then each possible set of one is met. The furthest of them is a bound. */
#ifdef COVERAGE_NOT_CHECKED
#define covered(t) (era_k[t] > 0 && (era_names[t] & ballots) != 0)
#else
#define covered(t) (era_k[t] > 0 && (era_names[t] & ~ballots) == 0)
#endif
#define cast(i) in(i, ballots)
#define beyond(i, j, t) (!(in(j, era_names[t]) && cast(j)) || pos(i) >= pos(j))
#define by_names(i, t) (covered(t) && beyond(i, 0, t) && beyond(i, 1, t) && beyond(i, 2, t))
#define by_former(i, t) (era_by[t] != leader && cast(era_by[t]) && pos(i) >= pos(era_by[t]))
#define covers(i, t) (!in(t, eras) || by_names(i, t) || by_former(i, t))
#if TERMS == 2
#define by_eras(i) covers(i, 1) /* an election follows the first term only */
#elif defined(LAST_ERA_ONLY)
#define by_eras(i) (in(2, eras) -> covers(i, 2) : covers(i, 1))
#else
#define by_eras(i) (covers(i, 1) && covers(i, 2)) /* TERMS is 3 at most */
#endif
#define by_leader(i) (cast(leader) && pos(i) >= pos(leader))
#define by_handover(i) (handed > 0 && cast(handed - 1) && pos(i) >= pos(handed - 1))
#ifdef ANY_BALLOT
#define elected(i) cast(i)
#else
#define elected(i) (cast(i) && (by_eras(i) || by_leader(i) || by_handover(i)))
#endif
#ifdef LETS_GO_UNSEEN
#define caught_up(i, j) true
#else
#define caught_up(i, j) (upstream[j] == i + 1 && size[j] == size[i])
#endif

inline copy(i, j) { /* i's log becomes j's */
    size[i] = size[j]; tl[i] = tl[j];
    at(i, 0) = at(j, 0); at(i, 1) = at(j, 1)
}

inline stops(i) { /* its engine ends, and with it every stream from it */
    prim[i] = 0; set_names[i] = 0; upstream[i] = 0; rec_due[i] = 0;
    if :: upstream[0] == i + 1 -> upstream[0] = 0 :: else fi;
    if :: upstream[1] == i + 1 -> upstream[1] = 0 :: else fi;
    if :: upstream[2] == i + 1 -> upstream[2] = 0 :: else fi
}

inline takes(i) { /* the one transaction that makes a leader. The last one leads on with its own era */
    key = i + 1; term++; ballots = 0; handed = 0; let_go = 0;
    era_by[term] = i;
    if
    :: leader == i && in(term - 1, eras) ->
        eras = (eras & ~bit(term - 1)) | bit(term); era_k[term] = era_k[term - 1]; era_names[term] = era_names[term - 1]
    :: else
    fi;
    leader = i
}

proctype member(byte me) {
    byte p;
    byte names;
end:
    do
    /* --- as primary, by its own word --- */
    :: d_step { prim[me] > 0 && size[me] < LOG -> at(me, size[me]) = prim[me]; size[me]++;
            if :: base[me] == UNKNOWN && set_names[me] != 0 -> base[me] = size[me] :: else fi }
    :: d_step { prim[me] > 0 && set_names[me] != 0 && acked[0] == 0 && size[me] > 0 &&
            ((in(0, set_names[me]) && upstream[0] == me + 1 && size[0] > 0) ||
             (in(1, set_names[me]) && upstream[1] == me + 1 && size[1] > 0) ||
             (in(2, set_names[me]) && upstream[2] == me + 1 && size[2] > 0)) ->
            acked[0] = at(me, 0); assert(opened <= prim[me] || has(opened_by, 0)) }
    :: d_step { prim[me] > 0 && set_names[me] != 0 && acked[0] != 0 && acked[1] == 0 && size[me] > 1 &&
            ((in(0, set_names[me]) && upstream[0] == me + 1 && size[0] > 1) ||
             (in(1, set_names[me]) && upstream[1] == me + 1 && size[1] > 1) ||
             (in(2, set_names[me]) && upstream[2] == me + 1 && size[2] > 1)) ->
            acked[1] = at(me, 1); assert(opened <= prim[me] || has(opened_by, 1)) }

    /* --- the sync set: the setting and the record, one step at a time, with the record as it was seen --- */
    :: atomic { prim[me] > 0 && prim[me] == term && key == me + 1 && settled(me) ->
            if :: names = bit((me + 1) % 3) :: names = bit((me + 2) % 3) :: names = 7 - bit(me) fi;
            if
            :: names != set_names[me] && may_set(me, names) ->
                set_names[me] = names; base[me] = UNKNOWN
            :: else
            fi; names = 0 }
    :: d_step { prim[me] > 0 && base[me] == UNKNOWN && set_names[me] != 0 -> base[me] = size[me] }
    :: atomic { prim[me] > 0 && prim[me] == term && key == me + 1 && !rec_due[me] ->
            p = 0;
            do :: p < N - 1 -> p++ :: break od;
            if
            :: eras != bit(term) || era_k[term] > 0 -> /* claim less */
                sent_eras[me] = bit(term); sent_k[me] = 0; sent_names[me] = 0; rec_due[me] = 1
            :: !in(term, eras) -> /* its own era, before it acknowledges anything */
                sent_eras[me] = eras | bit(term); sent_k[me] = 1; rec_due[me] = 1;
                sent_names[me] = 7 - bit(me)
            :: set_names[me] != 0 && in(p, set_names[me]) && confirmed(me, p) ->
                sent_eras[me] = bit(term); sent_k[me] = 1; sent_names[me] = set_names[me]; rec_due[me] = 1
            :: else
            fi; p = 0 }
    :: d_step { rec_due[me] && key == me + 1 && term == prim[me] ->
            eras = sent_eras[me]; era_k[term] = sent_k[me]; era_names[term] = sent_names[me]; rec_due[me] = 0 }

    /* --- giving up: the engine is down. To a target that was seen to have every byte, or to nobody --- */
    :: atomic { prim[me] > 0 && spent[me] < prim[me] && key == me + 1 && term == prim[me] ->
            p = 0;
            do :: p < N - 1 -> p++ :: break od;
            spent[me] = prim[me]; key = 0; let_go = 1; ballots = 0;
            if :: p != me && caught_up(me, p) -> handed = p + 1 :: true fi;
            stops(me); p = 0 }

    /* --- a replica: follows whom it believes to lead, takes from it, rejoins --- */
    :: atomic { prim[me] == 0 && upstream[me] == 0 ->
            p = 0;
            do :: p < N - 1 -> p++ :: break od;
            if
            :: p != me && prim[p] > 0 && may_follow(me, prim[p]) && size[me] <= size[p] && same(me, p, size[me]) ->
                upstream[me] = p + 1;
                if :: size[me] >= fork[tl[p]] -> tl[me] = tl[p] :: else fi
            :: else
            fi; p = 0 }
    :: d_step { prim[me] == 0 && upstream[me] > 0 && prim[upstream[me] - 1] > 0 && size[me] < size[upstream[me] - 1] ->
            at(me, size[me]) = at(upstream[me] - 1, size[me]); size[me]++;
            if :: size[me] >= fork[tl[upstream[me] - 1]] -> tl[me] = tl[upstream[me] - 1] :: else fi }
    :: d_step { upstream[me] > 0 -> upstream[me] = 0 }

    /* --- a former primary, or one whose log has parted: rewound or copied from the present leader --- */
    :: d_step { key > 0 && key != me + 1 && prim[key - 1] == term && voted[me] <= term && prim[me] < term &&
            !(size[me] <= size[key - 1] && same(me, key - 1, size[me]) && prim[me] == 0) ->
            stops(me); copy(me, key - 1) }

    /* --- election --- */
    :: d_step { key == 0 && term < TERMS && prim[me] == 0 && voted[me] <= term && left_upstream(me) ->
            voted[me] = term + 1; ballots = ballots | bit(me);
            assert(ballots != 7 || elected(0) || elected(1) || elected(2));
            /* Nobody need wait for a leader that has acknowledged nothing. */
            assert(in(term, eras) || (7 & ~(ballots | bit(leader))) != 0 || elected(0) || elected(1) || elected(2)) }
    :: d_step { key == 0 && leader == me && prim[me] > 0 -> stops(me) }
    :: d_step { key == 0 && term < TERMS && prim[me] == 0 && (elected(me) || handed == me + 1) -> takes(me);
            voted[me] = term }
    :: d_step { key == me + 1 && prim[me] == 0 && spent[me] < term ->
            assert(has_all(me));
            prim[me] = term; opened = term; opened_by = me; tl[me] = term; fork[term] = size[me]; upstream[me] = 0;
            set_names[me] = 0; base[me] = UNKNOWN; sent_eras[me] = 0; sent_k[me] = 0; sent_names[me] = 0; rec_due[me] = 0 }
    od
}

/* The leader's key goes with its lease, at any time, and the old primary does not notice. */
proctype etcd() {
end:
    do
    :: d_step { key > 0 && term < TERMS -> key = 0; ballots = 0 }
    od
}

init {
    atomic {
        tl[0] = 1; tl[1] = 1; tl[2] = 1; prim[0] = 1; base[0] = UNKNOWN;
        upstream[1] = 1; upstream[2] = 1;
        run member(0); run member(1); run member(2); run etcd()
    }
}
