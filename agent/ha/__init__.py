"""High availability of one instance, decided by its members' agents: who leads, and what each member does about it.

`keeper` gathers a `view`, the pure `decide` answers with a `Decision` (actions, reason, when to look again),
`performer` carries the actions out. `decide` is put together from `leading`, `following` and `leaderless`, by who
leads; `premises` holds the predicates they share. `election` says who may lead next, `syncset` in which order the set
of synchronous standbys changes, `leaseclock` how long a leadership may be relied on. `tests/sim` runs all of this
through crashes, partitions and clocks that drift, with the invariants below as checkers.

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
Whoever could be elected has data; data comes from the leader only; so whoever could be elected is known to the leader
and among those it asks. A promise binds after an agent's restart (it waits a TTL before it stands) and after an Acquire
that took effect late (it does not promote before the promise is over). A member that has voted does not promise.

*Nothing acknowledged is lost (sync, quorum).* The record in etcd says where acknowledged commits are, at every instant
(`syncset`). A leader is elected only with ballots that meet every set of standbys the record allows, or by the word of
the last leader (`election`). A ballot is final: the member has left the old primary before it votes and never streams
for that term again, so from a decided election on the old primary gets no acknowledgement together, whatever clocks and
proxies do. A new leader acknowledges nothing until its own set is on record: its engine starts with a set that nobody
meets. In async mode an election refuses who is, or may be, more than `max_failover_lag` behind: who lost the stream
while the leader still led, or never followed its timeline.

*Logs never mix.* Nobody initialises an instance that has a system identifier. Data of another identifier is left alone.
A former primary rejoins by rewind or clone; a replica whose log has parted from the leader's is found by the leader's
timeline history. A leader that nobody followed may have used the number of a timeline that the next one uses again;
then no tool sees the difference, but the terms do (`followed_term`), and the data is copied anew.

Why it goes on
--------------
Every reason to wait names a time or a piece of news that ends it, and `wake_at` is never further than a second away. An
election waits a second for ballots, then goes by those there are; a winner that does not act within three seconds is
followed by the next. What cannot go on says what is missing and what to do: `ELECTION_STUCK` names the ballots,
`TOO_FEW_STANDBYS` the number, `FOREIGN_DATA` the directory's owner. Nothing is remembered that can be observed again; a
step that was interrupted is decided anew from what is then true.
"""
