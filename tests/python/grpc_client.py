"""A client that knows nothing of Phalanx but its address and token: everything else comes by reflection.

usage: grpc_client.py HOST:PORT TOKEN_FILE
"""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

ADDRESS, TOKEN = sys.argv[1], open(sys.argv[2]).read().strip()
JOB = 'version = 1\n[program]\ncommand = ["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; exit 3"]\n'


class Token(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Adds the token to every call, reflection's own included."""

    def _with_token(self, details):
        metadata = list(details.metadata or []) + [("authorization", "Bearer " + TOKEN)]
        return details._replace(metadata=metadata)

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(self._with_token(details), request)

    intercept_unary_stream = intercept_unary_unary
    intercept_stream_stream = intercept_unary_unary


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


plain = grpc.insecure_channel(ADDRESS)
channel = grpc.intercept_channel(plain, Token())
database = ProtoReflectionDescriptorDatabase(channel)
services = set(database.get_services())
assert {"phalanx.v1.Jobs", "phalanx.v1.Cluster", "grpc.health.v1.Health"} <= services, services
pool = descriptor_pool.DescriptorPool(database)


def method(service, name, channel=channel):
    found = pool.FindServiceByName(service).FindMethodByName(name)
    kind = channel.unary_stream if found.server_streaming else channel.unary_unary
    request = message_factory.GetMessageClass(found.input_type)
    answer = message_factory.GetMessageClass(found.output_type)
    call = kind("/%s/%s" % (service, name), request_serializer=request.SerializeToString, response_deserializer=answer.FromString)
    return lambda **fields: call(request(**fields), timeout=30)


jobs = lambda name: method("phalanx.v1.Jobs", name)
State = pool.FindEnumTypeByName("phalanx.v1.Job.State")
state = lambda job: State.values_by_number[job.state].name
code = grpc.StatusCode

# Without a token nothing answers, health and unknown methods included.
assert code_of(lambda: method("phalanx.v1.Jobs", "List", plain)()) == code.UNAUTHENTICATED
assert code_of(lambda: method("grpc.health.v1.Health", "Check", plain)()) == code.UNAUTHENTICATED
unknown = plain.unary_unary("/phalanx.v1.Nothing/Here")
assert code_of(lambda: unknown(b"", timeout=5)) == code.UNAUTHENTICATED
assert method("grpc.health.v1.Health", "Check")(service="").status == 1

# Submit: once per request id, refused with other content, checked without a change.
checked = jobs("Submit")(toml=JOB, validate_only=True)
assert checked.id == "" and len(jobs("List")().jobs) == 0, checked
job = jobs("Submit")(toml=JOB, request_id="r1", default_name="reflected")
assert jobs("Submit")(toml=JOB, request_id="r1", default_name="reflected").id == job.id
assert code_of(lambda: jobs("Submit")(toml=JOB + "# other\n", request_id="r1")) == code.ALREADY_EXISTS
assert code_of(lambda: jobs("Submit")(toml="version = 1\n")) == code.INVALID_ARGUMENT
big = JOB + "[gang]\ncpus = 1000\n"
for only in (False, True):
    assert code_of(lambda: jobs("Submit")(toml=big, validate_only=only)) == code.FAILED_PRECONDITION

# Watch: every change, the terminal one last, and again from the middle.
changes = list(jobs("Watch")(id=job.id))
assert state(changes[-1].job) == "FAILED" and changes[-1].job.exit_code == 3, changes[-1]
seqs = [change.seq for change in changes]
assert seqs == sorted(set(seqs))
rest = list(jobs("Watch")(id=job.id, after_seq=seqs[0]))
assert [change.seq for change in rest] == seqs[1:]

# Logs: lines by number, then one message with only the terminal job; resumed without gap or repeat.
for follow in (False, True):
    messages = list(jobs("Logs")(id=job.id, follow=follow))
    assert [m.line.line for m in messages[:-1]] == [b"line %d" % i for i in range(1, 6)]
    assert [m.line.seq for m in messages[:-1]] == [1, 2, 3, 4, 5]
    assert not messages[-1].HasField("line") and state(messages[-1].job) == "FAILED"
    messages = list(jobs("Logs")(id=job.id, follow=follow, after_seq=3))
    assert [m.line.seq for m in messages[:-1]] == [4, 5]
assert code_of(lambda: list(jobs("Logs")(id=job.id, rank=-1))) == code.INVALID_ARGUMENT
assert state(list(jobs("Metrics")(id=job.id, follow=True))[-1].job) == "FAILED"

# Pages: the newest first, each job once.
for _ in range(4):
    jobs("Submit")(toml=JOB)
ids, token = [], ""
while True:
    page = jobs("List")(page_size=2, page_token=token)
    assert len(page.jobs) <= 2
    ids += [job.id for job in page.jobs]
    token = page.next_page_token
    if not token:
        break
assert ids == ["j5", "j4", "j3", "j2", "j1"], ids
assert code_of(lambda: jobs("List")(page_token="x")) == code.INVALID_ARGUMENT
assert code_of(lambda: jobs("List")(page_size=-1)) == code.INVALID_ARGUMENT

for name in ("Get", "Cancel", "Pause", "Resume"):
    assert code_of(lambda: jobs(name)(id="j99")) == code.NOT_FOUND, name
    assert code_of(lambda: jobs(name)(id="../j1")) == code.NOT_FOUND, name
for name in ("Watch", "Logs", "Metrics"):
    assert code_of(lambda: list(jobs(name)(id="j99"))) == code.NOT_FOUND, name
assert code_of(lambda: jobs("Cancel")(id=job.id)) == code.FAILED_PRECONDITION
assert method("phalanx.v1.Cluster", "Status")().jobs["FAILED"] >= 1
assert code_of(lambda: jobs("Submit")(toml="#" * (5 << 20))) in (code.OUT_OF_RANGE, code.RESOURCE_EXHAUSTED)
print("ok")
