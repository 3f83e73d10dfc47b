"""The contract of the rollout as a program: what one replica does with what it knows.

Pure: no clock, no request, no file. The first rule that applies decides. `contract.rs` asks it what it would do in random
states, a line of JSON each, and holds `src/rollout/decide.rs` to its answers.
"""
import json
import sys
from collections import namedtuple

UNDER_WAY = ('claimed', 'baking', 'spreading')
LISTED = 5          # how many changes `good` and `stopped` remember
LOST, RETURNED, LIMIT = 5, 2, 10    # points of a holder lost without a word, of one that gave the Lease back, and the end

# holder: a Pod's UID, '' when nobody holds it · candidate: the change that it speaks of · state: UNDER_WAY, 'done', 'stopped', 'none'
# points: what its lost holders cost the candidate · good, stopped: changes, newest last · retries: raised by people's `retry` and `promote`
# renewals: raised by each write · returned: its last holder gave it back
Lease = namedtuple('Lease', 'holder candidate state points good stopped retries renewals returned')

# uid · newest: the change of the newest sources seen · published: the change in the output, or None
# base: the change this replica goes back to: the newest published one that the fleet knows to be good, or None
# confirmed: published has its verdict 'confirmed' · rejected: the change that this replica itself rejected (its quarantine)
# rejected_at: the Lease's `retries` at that time · busy: a transaction is under way (not one that waits for an unreachable process)
# owes: published has no verdict yet · claimed: this replica wrote the last claim it knows of · reverted: it went to `published` because that is good
# All but `newest` and `busy` are in the journal: they survive a restart of the container.
Replica = namedtuple('Replica', 'uid newest published base confirmed rejected rejected_at busy owes claimed reverted')

# What the replica's own monotonic clock says · expired: under way, not mine, and nobody renewed it for 30 s while I could see it; or nobody holds it
# my_moment: `spreading` for longer than my share of the spread · baked · spread_over: the spread, a confirmation and two polls have passed
# no_verdict: I lead since three confirmation timeouts and have no verdict · history: a usable change from the history, or None
Clock = namedtuple('Clock', 'expired my_moment baked spread_over no_verdict history')


def decide(me, lease, clock):
    """One action: ('rest',) ('poll',) ('poll slowly',) ('renew',) ('go', change, why) ('back',) ('settle',) ('forget rejection',)
    ('write', new lease, why) ('write history', change) ('start from history', change)."""
    if me.newest is None:                    # sources not seen since the start: what I published stands for them
        if me.published is None: return ('rest',)
        me = me._replace(newest=me.published)
    under_way = lease is not None and lease.state in UNDER_WAY
    good, stopped = (lease.good, lease.stopped) if lease else ((), ())
    unproven = me.published is not None and me.published != me.base
    # 1 people asked for another try
    if lease and me.rejected is not None and me.rejected not in stopped and me.rejected_at != lease.retries:
        return ('forget rejection',)
    # 2 what I rejected, the fleet must know
    if under_way and me.rejected is not None and me.rejected == lease.candidate and me.rejected_at == lease.retries:
        return ('write', stop(lease, me.rejected), 'rejected')
    # 3 what I published before it was known to be good
    if unproven and (lease or me.base is not None):
        if me.published in good:
            if me.confirmed: return ('settle',)
        elif me.base is not None and not me.busy:
            abandoned = not under_way or clock.expired and me.newest != me.published
            leaves_anyway = me.newest in good and me.newest != me.rejected
            if me.published in stopped or abandoned and not leaves_anyway: return ('back',)
    # 4 a revert to something good is the newest state of the fleet
    if me.reverted and lease and not under_way and not me.busy and me.newest == me.published == me.base:
        if lease.candidate != me.published and me.published in good:
            return ('write', done(lease, me.published)._replace(holder=me.uid), 'reverted')
    # 5 who ended it keeps it for new Pods
    if me.claimed and lease and lease.state == 'done' and lease.holder == me.uid and me.newest == me.published == lease.candidate:
        return ('write history', lease.candidate)
    # 6 the first time
    if lease is None and me.base is None and me.published is not None and me.confirmed:
        return ('write', Lease(me.uid, me.published, 'done', 0, (me.published,), (), 0, 0, False), 'first')
    # 7 a new Pod, or one that never had anything good, starts where the fleet stands
    if lease and me.base is None and not me.confirmed and me.newest not in good and clock.history is not None and not me.busy:
        return ('start from history', clock.history)
    # 8 the holder
    if under_way and lease.holder == me.uid:
        return lead(me, lease, clock)
    # 9 nothing newer for me
    if me.newest == me.published:
        if not unproven: return ('rest',)
        if not me.busy and (me.published in good or me.published in stopped or not me.confirmed and (lease is None or me.rejected == me.published)):
            return ('poll slowly',)          # only my own verdict, or a person, changes this
        if not me.busy and (clock.expired or not under_way): return claim(me, lease)
        return ('poll',)
    # 10 something newer
    if me.busy: return ('poll',)
    patience = ('poll',) if unproven and me.base is not None else ('poll slowly',)
    if me.rejected == me.newest: return patience
    if lease is None and me.base is None: return ('go', me.newest, 'first')
    if me.newest in good: return ('go', me.newest, 'good')
    if me.newest in stopped: return patience
    if under_way and not clock.expired:
        if lease.candidate == me.newest and lease.state == 'spreading' and clock.my_moment:
            return ('go', me.newest, 'spread')
        return ('poll',)
    return claim(me, lease)


def lead(me, lease, clock):
    """What the holder does with a candidate that is under way."""
    candidate = lease.candidate
    if me.newest != candidate:
        if me.newest in lease.good or me.newest in lease.stopped or me.newest in (me.base, me.rejected):
            return ('write', lease._replace(state='none', candidate=None, holder='', renewals=lease.renewals + 1), 'abandoned')
        return ('write', lease._replace(candidate=me.newest, state='claimed', points=0, renewals=lease.renewals + 1), 'replaced')
    if me.published != candidate:
        return ('renew',) if me.busy or me.rejected == candidate else ('go', candidate, 'hold')
    if not me.confirmed:
        if clock.no_verdict and not me.busy:
            return ('write', lease._replace(holder='', returned=False, renewals=lease.renewals + 1), 'given up')
        return ('renew',)
    if lease.state == 'claimed':
        return ('write', lease._replace(state='baking', renewals=lease.renewals + 1), 'baking')
    if lease.state == 'baking' and clock.baked:
        return ('write', lease._replace(state='spreading', renewals=lease.renewals + 1), 'spreading')
    if lease.state == 'spreading' and clock.spread_over:
        return ('write', done(lease, candidate), 'done')
    return ('renew',)


def claim(me, lease):
    """Take the newest change, or take over what its holder left."""
    if me.owes: return ('poll',)             # first my own verdict
    if lease is None:
        return ('write', Lease(me.uid, me.newest, 'claimed', 0, (), (), 0, 0, False), 'claim')
    points = 0
    if lease.candidate == me.newest and lease.state in UNDER_WAY:
        points = lease.points + (RETURNED if lease.returned else LOST)
        if points >= LIMIT: return ('write', stop(lease, me.newest), 'holders lost')
    return ('write', lease._replace(holder=me.uid, candidate=me.newest, state='claimed', points=points,
                                    renewals=lease.renewals + 1, returned=False), 'claim')


def stop(lease, change):
    return lease._replace(state='stopped', holder='', stopped=added(lease.stopped, change), good=without(lease.good, change),
                          renewals=lease.renewals + 1)


def done(lease, change):
    return lease._replace(state='done', candidate=change, good=added(lease.good, change), stopped=without(lease.stopped, change),
                          renewals=lease.renewals + 1)


def added(changes, change): return (without(changes, change) + (change,))[-LISTED:]


def without(changes, change): return tuple(c for c in changes if c != change)


def answer(line):
    me, lease, clock = json.loads(line)
    lease = lease and Lease(*lease)
    lease = lease and lease._replace(good=tuple(lease.good), stopped=tuple(lease.stopped))
    return json.dumps(decide(Replica(*me), lease, Clock(*clock)))


if __name__ == '__main__':
    for line in sys.stdin:
        print(answer(line))
