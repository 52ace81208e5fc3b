"""Prepared statements by the protocol over shared connections: what the server gets, what the client sees."""

from __future__ import annotations

import pytest

from proxy.postgres import refusals
from proxy.postgres.answering import KEPT_BYTES_MAX, answers
from proxy.postgres.frames import Boundary
from proxy.postgres.messages import SYNC, close, error_fields, message, parse
from proxy.postgres.prepared import CLIENT_BYTES_MAX, Held, Library, Statements, deallocated
from proxy.postgres.renaming import GONE, HELD_BACK_BYTES_MAX, NEVER, STATEMENT_BYTES_MAX, translate
from proxy.postgres.requests import Pool, Requests
from tests.support.conversations import DESCRIBE_PORTAL, EXECUTE, FLUSH, bind, describe, query

PARSED, BOUND, CLOSED = message(b"1"), message(b"2"), message(b"3")
READY = message(b"Z", b"I")
TEXT = b"SELECT 1"
REFUSAL = parse(b"moorage_refused", b"moorage_refused")


def complete(tag: bytes) -> bytes:
    return message(b"C", tag + b"\0")


def error(code: str, text: str = "no", routine: str = "") -> bytes:
    answer = refusals.error(code, text, severity="ERROR")
    if routine:
        answer = message(b"E", answer[5:-1] + b"R" + routine.encode() + b"\0\0")
    return answer


class Shared:
    """One client, at one connection after the other."""

    def __init__(self, library: Library | None = None, *, limit: int = 500) -> None:
        self.statements = Statements(library or Library())
        self.requests = Requests(keeps=False)
        self.limit = limit
        self.go_elsewhere()

    def go_elsewhere(self, held: Held | None = None) -> None:
        self.held = held or Held(self.limit)
        self.boundary = Boundary()

    def send(self, data: bytes) -> bytes:
        out = translate(self.statements, self.held, data, self.requests)
        self.requests.feed(data)
        return out

    def hear(self, data: bytes) -> bytes:
        shown = answers(self.statements, self.held, data, self.boundary)
        self.boundary.feed(shown)
        if self.boundary.readies:
            self.requests.ready(self.boundary.readies, self.boundary.state)
        return shown

    def prepare(self, name: bytes = b"s", text: bytes = TEXT) -> None:
        self.send(parse(name, text) + SYNC)
        assert self.hear(PARSED + READY) == PARSED + READY


RUN = bind(b"s", b"7") + EXECUTE + SYNC


def test_a_statement_has_one_name_at_all_servers_whatever_clients_call_it():
    library = Library()
    one, other = Shared(library), Shared(library)
    assert one.send(parse(b"s", TEXT) + SYNC) == parse(b"moorage_1", TEXT) + SYNC
    assert other.send(parse(b"t", TEXT) + SYNC) == parse(b"moorage_1", TEXT) + SYNC
    assert one.hear(PARSED + READY) == PARSED + READY
    assert one.send(RUN) == bind(b"moorage_1", b"7") + EXECUTE + SYNC
    assert one.send(parse(b"u", b"SELECT 2") + SYNC) == parse(b"moorage_2", b"SELECT 2") + SYNC


def test_what_a_connection_does_not_have_is_prepared_before_its_use_and_the_client_does_not_see_it():
    client = Shared()
    client.prepare()
    client.go_elsewhere()
    assert client.send(RUN) == parse(b"moorage_1", TEXT) + bind(b"moorage_1", b"7") + EXECUTE + SYNC
    answer = BOUND + complete(b"SELECT 1") + READY
    assert client.hear(PARSED + answer) == answer
    assert client.send(RUN) == bind(b"moorage_1", b"7") + EXECUTE + SYNC
    client.go_elsewhere()
    assert client.send(describe(b"s") + SYNC) == parse(b"moorage_1", TEXT) + describe(b"moorage_1") + SYNC


def test_the_failure_to_prepare_it_again_is_the_clients_error_and_it_is_tried_again():
    client = Shared()
    client.prepare()
    client.go_elsewhere()
    client.send(RUN)
    assert client.hear(error("42P01") + READY) == error("42P01") + READY
    assert client.send(RUN).startswith(parse(b"moorage_1", TEXT))


def test_a_client_that_prepares_what_another_has_prepared_is_answered_by_the_server():
    library = Library()
    one, other = Shared(library), Shared(library)
    one.prepare()
    other.go_elsewhere(one.held)
    assert other.send(parse(b"t", TEXT) + SYNC) == close(b"moorage_1") + parse(b"moorage_1", TEXT) + SYNC
    assert other.hear(CLOSED + PARSED + READY) == PARSED + READY


def test_closing_only_forgets_the_clients_name():
    client = Shared()
    client.prepare()
    assert client.send(close(b"s") + SYNC) == close(NEVER) + SYNC
    assert client.hear(CLOSED + READY) == CLOSED + READY
    assert client.send(bind(b"s", b"") + SYNC) == bind(b"s", b"") + SYNC
    assert [prepared.name for prepared in client.held.names] == [b"moorage_1"]


def test_a_name_that_is_used_already_is_refused_with_the_clients_name():
    client = Shared()
    client.prepare()
    sent = client.send(parse(b"s", b"SELECT 2") + RUN)
    assert sent == parse(b"moorage_2", b"SELECT 2") + REFUSAL + bind(b"moorage_1", b"7") + EXECUTE + SYNC
    shown = client.hear(PARSED + error("42601", 'syntax error at or near "moorage_refused"') + READY)
    assert error_fields(shown[5:-6]) == {
        "S": "ERROR",
        "V": "ERROR",
        "C": "42P05",
        "M": 'prepared statement "s" already exists',
    }
    assert shown.endswith(READY)
    assert client.statements.names[b"s"].body.startswith(TEXT)


def test_a_client_cannot_reach_the_statements_of_others_by_their_names_at_the_server():
    client = Shared()
    client.prepare()
    assert client.send(bind(b"moorage_1", b"") + SYNC) == bind(NEVER, b"") + SYNC
    assert client.send(close(b"moorage_1") + SYNC) == close(NEVER) + SYNC


def test_the_one_used_longest_ago_is_closed_when_a_connection_has_too_many():
    client = Shared(limit=2)
    for name, text in ((b"a", b"SELECT 1"), (b"b", b"SELECT 2")):
        client.prepare(name, text)
    client.send(bind(b"a", b"") + SYNC)
    client.hear(BOUND + READY)
    assert client.send(parse(b"c", b"SELECT 3") + SYNC) == close(b"moorage_2") + parse(b"moorage_3", b"SELECT 3") + SYNC
    assert client.hear(CLOSED + PARSED + READY) == PARSED + READY
    assert client.send(bind(b"b", b"") + SYNC).startswith(close(b"moorage_1") + parse(b"moorage_2", b"SELECT 2"))


# --- the unnamed statement ------------------------------------------------------------------------------------------


def test_the_unnamed_statement_passes_as_it_is_and_follows_its_client():
    client, other = Shared(), Shared()
    data = parse(b"", TEXT) + bind(b"", b"") + EXECUTE + SYNC
    assert client.send(data) is data
    client.hear(PARSED + BOUND + complete(b"SELECT 1") + READY)
    other.go_elsewhere(client.held)
    other.send(query(b"SELECT 2"))
    other.hear(complete(b"SELECT 1") + READY)
    assert client.send(bind(b"", b"") + SYNC) == parse(b"", TEXT) + bind(b"", b"") + SYNC
    assert client.hear(PARSED + BOUND + READY) == BOUND + READY


def test_an_unnamed_statement_that_is_none_is_not_that_of_another_client():
    client, other = Shared(), Shared()
    other.send(parse(b"", TEXT) + SYNC)
    other.hear(PARSED + READY)
    client.go_elsewhere(other.held)
    assert client.send(bind(b"", b"") + SYNC) == close(b"") + bind(b"", b"") + SYNC
    assert client.hear(CLOSED + error("26000") + READY) == error("26000") + READY


def test_it_is_made_again_where_it_was_left_if_it_was_destroyed_elsewhere():
    client = Shared()
    client.send(parse(b"", TEXT) + SYNC)
    client.hear(PARSED + READY)
    first = client.held
    client.go_elsewhere()
    client.send(query(b"SELECT 2"))
    client.hear(complete(b"SELECT 1") + READY)
    client.go_elsewhere(first)
    assert client.send(bind(b"", b"") + SYNC) == close(b"") + bind(b"", b"") + SYNC


# --- pipelines ------------------------------------------------------------------------------------------------------


def test_what_an_unanswered_batch_changes_is_waited_for():
    client = Shared()
    assert client.send(parse(b"s", TEXT) + SYNC + RUN + RUN) == parse(b"moorage_1", TEXT) + SYNC
    assert client.statements.waits
    assert not client.statements.may_go_on
    assert client.send(query(b"SELECT 2")) == b""
    client.hear(PARSED + READY)
    assert client.statements.may_go_on
    out = translate(client.statements, client.held, b"", client.requests)
    assert out == 2 * (bind(b"moorage_1", b"7") + EXECUTE + SYNC) + query(b"SELECT 2")
    assert not client.statements.waits


def test_a_batch_that_asks_for_its_answers_by_flush_is_not_held_up():
    client = Shared()
    assert client.send(parse(b"s", TEXT) + FLUSH) == parse(b"moorage_1", TEXT) + FLUSH
    assert client.send(RUN) == bind(b"moorage_1", b"7") + EXECUTE + SYNC


def test_a_client_that_does_not_stop_to_send_meanwhile_is_given_up():
    client = Shared()
    client.send(parse(b"s", TEXT) + SYNC + RUN)
    client.send(query(b"x" * HELD_BACK_BYTES_MAX))
    assert client.statements.lost


def test_answers_owed_from_before_are_not_taken_for_those_to_come():
    client = Shared()
    client.send(query(b"SELECT 1") + SYNC)
    client.send(parse(b"s", TEXT) + SYNC)
    first = complete(b"SELECT 1") + READY + READY
    assert client.hear(first) == first
    assert client.statements.queue
    client.hear(PARSED + READY)
    assert client.send(RUN) == bind(b"moorage_1", b"7") + EXECUTE + SYNC


def test_the_syncs_that_a_copying_server_ignores_are_not_counted():
    client = Shared()
    client.prepare(b"s", b"COPY t FROM STDIN")
    client.send(RUN)
    client.hear(BOUND + message(b"G", b"\0\0\0"))
    client.requests.copy_asked = client.boundary.copy_asked
    client.send(message(b"d", b"1\n") + message(b"c") + SYNC + parse(b"t", b"SELECT 2") + SYNC)
    client.hear(complete(b"COPY 1") + READY + PARSED + READY)
    assert not client.statements.queue
    assert client.requests.resting


def test_a_query_behind_a_batch_without_a_sync_that_fails_cannot_be_followed():
    client = Shared()
    client.send(parse(b"s", b"SELEC") + query(b"SELECT 1"))
    client.hear(error("42601") + READY)
    assert client.statements.lost


# --- deallocation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [b"DEALLOCATE s", b"deallocate prepare S ;", b'DEALLOCATE "s"'])
def test_deallocate_of_a_clients_name_is_one_of_a_name_made_for_the_purpose(statement):
    client = Shared()
    client.prepare()
    sent = client.send(query(statement))
    assert sent == close(GONE) + parse(GONE, b"") + query(b"DEALLOCATE " + GONE)
    assert client.hear(CLOSED + PARSED + complete(b"DEALLOCATE") + READY) == complete(b"DEALLOCATE") + READY
    assert client.statements.names == {}
    assert len(client.held.names) == 1


def test_a_deallocation_that_failed_changes_nothing():
    client = Shared()
    client.prepare()
    client.send(query(b"DEALLOCATE s"))
    client.hear(CLOSED + PARSED + error("25P02") + message(b"Z", b"E"))
    assert set(client.statements.names) == {b"s"}


def test_deallocate_by_an_extended_query():
    client = Shared()
    client.prepare()
    sent = client.send(parse(b"", b"DEALLOCATE s") + bind(b"") + EXECUTE + SYNC)
    made = close(GONE) + parse(GONE, b"")
    assert sent == parse(b"", b"DEALLOCATE " + GONE) + made + bind(b"") + EXECUTE + SYNC
    seen = PARSED + BOUND + complete(b"DEALLOCATE") + READY
    assert client.hear(PARSED + CLOSED + PARSED + BOUND + complete(b"DEALLOCATE") + READY) == seen
    assert client.statements.names == {}


@pytest.mark.parametrize("tag", [b"DEALLOCATE ALL", b"DISCARD ALL"])
def test_deallocate_all_is_seen_by_its_tag(tag):
    client = Shared()
    client.prepare()
    client.send(query(b"SELECT 1; " + tag))
    client.hear(complete(b"SELECT 1") + complete(tag) + READY)
    assert client.statements.names == {}
    assert not client.held.names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"DEALLOCATE ALL", None),
        (b'DEALLOCATE "All"', b"All"),
        (b'deallocate "a""b"', b'a"b'),
        (b"DEALLOCATE a, b", None),
        (b"DEALLOCATE " + b"x" * 70, b"x" * 63),
        (b"SELECT allocated", None),
    ],
)
def test_the_name_in_a_deallocate_is_read_as_the_server_reads_it(text, name):
    assert deallocated(text) == name


# --- the server's own troubles --------------------------------------------------------------------------------------


def test_a_statement_that_has_vanished_is_prepared_again_and_the_client_reads_its_own_name():
    client = Shared()
    client.prepare()
    client.send(RUN)
    shown = client.hear(error("26000", 'prepared statement "moorage_1" does not exist') + READY)
    assert b'prepared statement "s" does not exist' in shown
    assert client.send(RUN).startswith(parse(b"moorage_1", TEXT))


def test_a_statement_whose_result_has_changed_is_prepared_anew():
    client = Shared()
    client.prepare()
    client.send(RUN)
    client.hear(error("0A000", "cached plan must not change result type", "RevalidateCachedQuery") + READY)
    assert client.send(RUN).startswith(close(b"moorage_1") + parse(b"moorage_1", TEXT))


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_client_with_too_many_statements_is_told_so():
    client = Shared()
    size = STATEMENT_BYTES_MAX - 100
    for number in range(CLIENT_BYTES_MAX // size + 1):
        client.prepare(b"%d" % number, b"x" * (size - number))
    assert client.send(parse(b"one more", TEXT) + SYNC) == REFUSAL + SYNC
    shown = client.hear(error("42601", 'syntax error at or near "moorage_refused"') + READY)
    assert b"C53200\0" in shown


def test_all_clients_together_are_bounded_and_a_text_counts_once():
    pool = Pool(bytes_max=10_000)
    library = Library(pool)
    clients = [Shared(library) for _ in range(10)]
    for client in clients:
        client.prepare(b"s", b"x" * 5000)
    assert not pool.full
    clients[0].prepare(b"t", b"y" * 2500)
    assert clients[1].send(parse(b"t", TEXT) + SYNC) == REFUSAL + SYNC
    for client in clients:
        client.statements.release()
        client.held.clear()
    assert pool.bytes == 0


def test_a_statement_that_is_too_long_is_refused_in_parts():
    client = Shared()
    data = parse(b"s", b"x" * STATEMENT_BYTES_MAX) + SYNC
    sent = b"".join(client.send(data[at : at + 100_000]) for at in range(0, len(data), 100_000))
    assert sent == REFUSAL + SYNC
    assert b"C53200\0" in client.hear(error("42601", "moorage_refused") + READY)


def test_values_of_a_bind_are_not_gathered():
    client = Shared()
    client.prepare()
    data = bind(b"s", b"v" * 1_000_000) + EXECUTE + SYNC
    sent = []
    for at in range(0, len(data), 50_000):
        sent.append(client.send(data[at : at + 50_000]))
        assert len(client.statements.part) < 10
    assert min(len(one) for one in sent[:-1]) >= 50_000
    assert b"".join(sent) == bind(b"moorage_1", b"v" * 1_000_000) + EXECUTE + SYNC


def test_long_rows_pass_while_answers_are_awaited():
    client = Shared()
    client.prepare()
    client.go_elsewhere()
    client.send(RUN)
    row = message(b"D", b"x" * KEPT_BYTES_MAX * 3)
    data = PARSED + BOUND + row + complete(b"SELECT 1") + READY
    shown = []
    for at in range(0, len(data), 1000):
        shown.append(client.hear(data[at : at + 1000]))
        assert len(client.statements.kept) < 10
    assert b"".join(shown) == BOUND + row + complete(b"SELECT 1") + READY


def test_nothing_is_copied_that_need_not_be_changed():
    client = Shared()
    for data in (query(TEXT), DESCRIBE_PORTAL + EXECUTE + SYNC, message(b"d", b"x" * 1000), bind(b"", b"")):
        client.held.unnamed, client.statements.home = client.statements, client.held
        assert client.send(data) is data
    answer = message(b"D", b"x" * 100) + complete(b"SELECT 1") + READY
    assert client.hear(answer) is answer
