"""The Hub of the tests, as the real client sees it: branches, pull requests, rights."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.hub.access import READ_TOKEN
from tests.hub.calls import ask, hashes, remote
from tests.hub.client import Client
from tests.hub.repos import Repo
from tests.hub.server import Hub

SIZE = 3_000_000


@pytest.fixture(scope="module")
def weights() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def repo(hub: Hub, weights: bytes) -> Repo:
    return hub.repo("someone/model", {"config.json": b"{}", "model.safetensors": weights})


@pytest.fixture
def user(client: Client) -> Client:
    """Who may write, by LFS."""
    return client.with_token().with_(HF_HUB_DISABLE_XET="1")


@pytest.fixture
def folder(tmp_path: Path, weights: bytes) -> Path:
    """What is pushed."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model-1.safetensors").write_bytes(weights)
    return made


# -- branches ---------------------------------------------------------------------------------------------------------


def test_branches(user: Client, repo: Repo, weights: bytes) -> None:
    first = repo.refs["main"]
    out = ask(
        user,
        """
api.create_branch(name, branch="work/shards")
again = status(api.create_branch, name, branch="work/shards")
nowhere = status(api.create_branch, name, branch="x", revision="none")
made = api.create_commit(name, [Add("a/b.txt", b"1")], revision="work/shards", commit_message="one")
seen = api.list_repo_files(name, revision="work/shards")
info = api.get_paths_info(name, ["a/b.txt", "a", "model.safetensors", "none"], revision="work/shards")
copies = [Copy("model.safetensors", "weights/copy.safetensors", src_revision="work/shards"),
          Copy("a/b.txt", "b.txt", src_revision="work/shards"), Delete("config.json")]
merged = api.create_commit(name, copies, commit_message="two", parent_commit=api.repo_info(name).sha)
stale = status(api.create_commit, name, [Add("c", b"1")], commit_message="three", parent_commit=made.oid)
refs = api.list_repo_refs(name, include_pull_requests=True)
api.delete_branch(name, branch="work/shards")
gone = [status(api.create_commit, name, [Add("c", b"1")], commit_message="x", revision="work/shards"),
        status(api.delete_branch, name, branch="work/shards"), status(api.list_repo_files, name, revision="y/z")]
history = [(commit.title, commit.commit_id) for commit in api.list_repo_commits(name)]
out = [again[0], nowhere[:2], seen, [(i.path, getattr(i, "size", 0)) for i in info], stale[0],
       {b.name: [b.ref, b.target_commit] for b in refs.branches}, [g[:2] for g in gone], history, made.oid, merged.oid]
""",
    )
    again, nowhere, seen, info, stale, branches, gone, history, made, merged = out
    assert (again, nowhere, stale) == (409, [404, "RevisionNotFoundError"], 412)
    assert sorted(seen) == ["a/b.txt", "config.json", "model.safetensors"]
    assert info == [["a/b.txt", 1], ["a", 0], ["model.safetensors", SIZE]]
    assert branches == {"main": ["refs/heads/main", merged], "work/shards": ["refs/heads/work/shards", made]}
    assert gone == [[404, "RevisionNotFoundError"]] * 3
    assert history == [["two", merged], ["", first]]
    same = hashlib.sha256(weights).hexdigest()
    copied = {"b.txt": hashlib.sha256(b"1").hexdigest(), "weights/copy.safetensors": same}
    assert remote(repo) == {"model.safetensors": same, **copied}


# -- pull requests ----------------------------------------------------------------------------------------------------


def test_pull_requests(user: Client, repo: Repo, folder: Path) -> None:
    first = repo.refs["main"]
    out = ask(
        user,
        f"""
head = api.repo_info(name).sha
one = api.create_commit(name, [Add("a.txt", b"1")], commit_message="one", create_pr=True, parent_commit=head)
two = api.upload_folder(repo_id=name, folder_path={str(folder)!r}, commit_message="two", create_pr=True)
three = api.create_pull_request(name, "three")
api.create_commit(name, [Add("c.txt", b"3")], commit_message="c", revision=three.git_reference)
draft = status(api.merge_pull_request, name, 3)
api.change_discussion_status(name, 3, "open")
api.merge_pull_request(name, 3)
listed = [[d.num, d.title, d.status, d.author, d.is_pull_request] for d in api.get_repo_discussions(
    name, discussion_type="pull_request", discussion_status="open", author="someone")]
refs = api.list_repo_refs(name, include_pull_requests=True).pull_requests
files = api.list_repo_files(name, revision="refs/pr/1")
read = Path(api.hf_hub_download(name, "a.txt", revision="refs/pr/1")).read_text()
stale = status(api.create_commit, name, [Add("d", b"")], commit_message="x", create_pr=True, parent_commit=one.oid)
out = [[one.pr_url, one.pr_revision, one.oid], two.pr_revision, draft[0], listed, [r.ref for r in refs], files, read,
       stale[0], api.get_discussion_details(name, 3).status]
""",
    )
    made, second, draft, listed, refs, files, read, stale, third = out
    assert made == [f"{user.hub.url}/someone/model/discussions/1", "refs/pr/1", repo.refs["refs/pr/1"]]
    assert (second, draft, read, stale, third) == ("refs/pr/2", 400, "1", 412, "merged")
    assert listed == [[2, "two", repo.pulls[1].status, "someone", True], [1, "one", "open", "someone", True]]
    assert refs == ["refs/pr/1", "refs/pr/2", "refs/pr/3"]
    assert sorted(files) == ["a.txt", "config.json", "model.safetensors"]
    assert hashes(folder).items() <= remote(repo, "refs/pr/2").items()
    main = repo.find("main")
    assert main is not None
    assert (main.parent, set(main.files)) == (first, {"c.txt", "config.json", "model.safetensors"})


# -- rights -----------------------------------------------------------------------------------------------------------

WRITES = """
add = [Add("model.safetensors", b"12")]
out = [status(api.create_repo, "someone/new"), status(api.create_branch, name, branch="x"),
       status(api.create_commit, name, [Add("a", b"1")], commit_message="x"),
       status(api.create_commit, name, [Delete("config.json")], commit_message="x"),
       status(api.create_pull_request, name, "title"), status(api.preupload_lfs_files, name, add)]
from huggingface_hub.utils import get_session
posts = [f"{name}.git/info/lfs/objects/batch", f"api/models/{name}/xet-write-token/main"]
headers = api._build_hf_headers()
out = [[*o[:2], o[2]] for o in out] + [[get_session().request(how, f"{api.endpoint}/{path}", headers=headers,
    json={"objects": []} if how == "POST" else None).status_code, "", ""] for how, path in zip(("POST", "GET"), posts)]
"""


@pytest.mark.parametrize(("token", "status"), [(READ_TOKEN, 403), ("hf_wrong", 401), ("", 401)])
def test_who_may_not_write(client: Client, repo: Repo, token: str, status: int) -> None:
    before = dict(repo.refs)
    found = ask(client.with_(HF_TOKEN=token), WRITES)
    assert {code for code, _, _ in found} == {status}
    said = found[0][2]
    if status == 403:
        assert "403 Forbidden: Forbidden: you must use a write token to upload to a repository." in said
    assert (repo.refs, list(client.hub.repos)) == (before, ["someone/model"])


def test_who_may_write_where(hub: Hub, client: Client, user: Client) -> None:
    hub.repo("other/model", {"config.json": b"{}"})
    out = ask(
        user,
        """
api.create_repo("someone/secret", private=True)
again = status(api.create_repo, "someone/secret"), status(api.create_repo, "someone/secret", exist_ok=True)
api.create_repo("org/open")
there = status(api.create_repo, "other/new")
add = [Add("a", b"1")]
theirs = status(api.create_commit, "other/model", add, commit_message="x")
offered = api.create_commit("other/model", add, commit_message="x", create_pr=True).pr_revision
out = [again[0][0], again[1][0], there, theirs, offered, api.whoami()["auth"]["accessToken"]["role"]]
""",
    )
    assert out[:2] == [409, 200]
    assert out[2][0] == 403
    assert 'don\'t have the rights to create a model under the namespace "other"' in out[2][2]
    assert out[3][0] == 403
    assert "create_pr=1" in out[3][2]
    assert out[4:] == ["refs/pr/1", "write"]
    assert {name: hub.repos[name].access for name in hub.repos} == {
        "other/model": "public", "someone/secret": "private", "org/open": "public",
    }  # fmt: skip
    read = "out = status(api.repo_info, 'someone/secret')[:2]"
    assert ask(client.with_(HF_TOKEN=READ_TOKEN), read) == [200, ""]
    assert ask(client, read) == [401, "RepositoryNotFoundError"]
