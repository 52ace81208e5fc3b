"""High availability of one instance, decided by its members' agents: who leads, and what each member does about it.

`keeper` gathers a `view`, the pure `decide` answers with a `Decision` (actions, reason, when to look again),
`performer` carries the actions out. `decide` is put together from `leading`, `following` and `leaderless`, by who
leads; `premises` holds the predicates they share. `election` says who may lead next, `syncset` in which order the set
of synchronous standbys changes, `leaseclock` how long a leadership may be relied on. `handover` is the switchover as
the old primary does it, `hold` how clients wait for it, `takeover` what the history is told. `tests/sim` runs all of
this through crashes, partitions and clocks that drift, with the invariants below as checkers.

Why it is safe
--------------
*One leader.* The key `leader/...` in etcd is created by one transaction that compares its absence and the last term,
and hangs on the lease of the leader's node. So terms grow by one, and no two members hold the key at once.

*A leader stops before another can start.* Its deadline `fence_at` is counted from when the renewal was sent, on its own
clock, and ends a quarter of the TTL before etcd may delete the key; that covers clocks whose rates differ by 10 % and
the time a fence takes. `decide` fences before it does anything else; the keeper has a guard beside the loop, the
proxies end the route by themselves. A leader that gives up by itself does so with its engine down, and from the moment
it *sends* the Release it never uses that term again (`spent_term`): the request may take effect at any time.

*Failsafe.* Without the hub a primary goes on only while every other member has promised, for a TTL, not to stand.
Whoever could be elected has data, and data comes with the leader's leave only: a member that copies, be it from another
replica, asks the leader first over the replication protocol, and an engine lets in only whom its agent knows to be a
member. So whoever could be elected is known to the leader and among those it asks, for a leader that has let somebody
in asks him from then on. Streaming from another replica brings nobody data who had none. A promise binds after an
agent's restart (it waits a TTL before it stands) and after an Acquire that took effect late (it does not promote before
the promise is over). A member that has voted does not promise.

*Nothing acknowledged is lost (sync, quorum).* The record in etcd says where acknowledged commits are, at every instant
(`syncset`). A leader is elected only with ballots that meet every set of standbys the record allows, or by the word of
the last leader (`election`): one that handed over had stopped for good and had seen at its successor's own agent that
this has every byte, so the successor needs no ballots, and nothing that others do meanwhile adds an acknowledgement. A
member that streams through another replica is in no sync set. A ballot is final: the member has left the old primary
before it votes and never streams for that term again, so from a decided election on the old primary gets no
acknowledgement together, whatever clocks and proxies do. A new leader acknowledges nothing until its
own set is on record: its engine starts with a set that nobody meets. Until then the record goes on saying where the
commits of before are, so whoever could have led instead of it may lead after it; and until its first set holds for
everything, an election covers both, what former leaders acknowledged and what this one may have (`eras`). In async mode
an election refuses who is, or may be, more than `max_failover_lag` behind: who lost the stream while the leader still
led, or never followed its timeline.

*What an operator may do.* Forcing a failover lifts what guards data, never what keeps two from leading: the target
still takes a free leadership by the one transaction, and keeps its promises; the leader that is to go fences itself
before it lets go, and nobody promises it anything any more. While automatic failover is paused nobody is elected;
leases, fences and promises work as ever. The last leader may lead again, for nobody has led since and it has its own
log; a switchover or a forced failover is the operator's own act and goes through.

*Logs never mix.* Nobody initialises an instance that has a system identifier. Data of another identifier is left alone.
A former primary rejoins by rewind or clone; a replica whose log has parted from the leader's is found by the leader's
timeline history. A leader that nobody followed may have used the next number for its timeline; whoever leads after it
passes that number over (`timelines_used`), so that no two logs ever bear one number. And should they, no tool would see
the difference, but the terms do (`followed_term`), and the data is copied anew.

Why it goes on
--------------
Every reason to wait names a time or a piece of news that ends it, and `wake_at` is never further than a second away. An
election waits a second for ballots, then goes by those there are; a winner that does not act within three seconds is
followed by the next, a successor within one, an order to force somebody is void after thirty. A crashed engine is left
to a replica whenever one can take over at once: that takes half a second and does not grow with the log to replay;
else it is started in place. A fence that does not end, because the disk does not answer, ends the leadership all the
same. What cannot go on says what is missing and what to do: `ELECTION_STUCK` names the ballots and the way around them,
`TOO_FEW_STANDBYS` the number, `FOREIGN_DATA` the directory's owner. Nothing is remembered that can be observed again; a
step that was interrupted is decided anew from what is then true.
"""
