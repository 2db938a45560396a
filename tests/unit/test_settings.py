from __future__ import annotations

import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from farebox.errors import InvalidSettings
from farebox.settings import (
    Address,
    ChangePolicy,
    ForeignPolicy,
    LogLevel,
    MintPolicy,
    Secret,
    Settings,
    create_root_key,
    find_settings,
    load_settings,
    read_root_key,
    read_secret_file,
    render_default_settings,
    render_settings,
)

EXAMPLE = Path(__file__).parents[2] / "farebox.example.toml"


def load(text: str, tmp_path: Path, **environ: str) -> Settings:
    path = tmp_path / "farebox.toml"
    path.write_text(text)
    return load_settings(path, environ, {})


def refusal(text: str, tmp_path: Path, **environ: str) -> InvalidSettings:
    with pytest.raises(InvalidSettings) as caught:
        load(text, tmp_path, **environ)
    return caught.value


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^#(?=[^ \n])", "", text)


def test_no_file_gives_the_defaults() -> None:
    settings = load_settings(None, {}, {})
    assert settings.gateway.listen == Address("127.0.0.1", 8080)
    assert settings.data_dir == Path("farebox-data").absolute()
    assert settings.database_path == settings.data_dir / "farebox.db"
    assert (settings.upstreams, settings.mints, settings.prices) == ((), (), ())
    assert settings.ecash.foreign is ForeignPolicy.REFUSE
    assert settings.ecash.change[0] is ChangePolicy.SAME


def test_the_file_is_read_into_typed_values(tmp_path: Path) -> None:
    settings = load(
        """
        data_dir = "books"
        [[upstream]]
        urls = ["http://one:1/", "https://two"]
        headers = { X-Region = "eu" }
        [[mint]]
        url = "https://mint.test/Bitcoin/"
        policy = "refused"
        units = ["sat", "msat"]
        ceiling = "2.5 sat"
        [[price]]
        anything = ["goes", { in = "here" }]
        [log]
        level = "debug"
        """,
        tmp_path,
    )
    assert settings.data_dir == tmp_path / "books"
    assert settings.upstreams[0].urls == ("http://one:1", "https://two")
    assert settings.upstreams[0].headers["X-Region"].reveal() == "eu"
    assert settings.mints[0].url == "https://mint.test/Bitcoin"
    assert settings.mints[0].policy is MintPolicy.REFUSED
    assert settings.mints[0].ceiling_msat == 2500
    assert settings.prices == ({"anything": ["goes", {"in": "here"}]},)
    assert settings.log.level is LogLevel.DEBUG


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("data_dir = 1", "data_dir", 1),
        ("[database]\nurl = 'mysql:x'", "database.url", "a str (hidden)"),
        ("[gateway]\nlisten = '8080'", "gateway.listen", "8080"),
        ("[gateway]\nlisten = 'h:65536'", "gateway.listen", "h:65536"),
        ("[gateway]\nlisten = '::1:80'", "gateway.listen", "::1:80"),
        ("[gateway]\nbody_bytes_max = 0", "gateway.body_bytes_max", 0),
        ("[gateway]\nbody_bytes_max = true", "gateway.body_bytes_max", True),
        ("[gateway]\nstop_grace_s = -1", "gateway.stop_grace_s", -1),
        ("[gateway]\nstop_grace_s = inf", "gateway.stop_grace_s", float("inf")),
        ("[gateway]\npublic_url = 'ftp://x'", "gateway.public_url", "ftp://x"),
        ("gateway = 1", "gateway", 1),
        ("[upstream]\nurls = []", "upstream", "a table"),
        ("[[upstream]]", "upstream[0].urls", "nothing"),
        ("[[upstream]]\nurls = []", "upstream[0].urls", "a list of 0"),
        ("[[upstream]]\nurls = ['http://a', 'b']", "upstream[0].urls[1]", "b"),
        ("[[upstream]]\nurls = ['http://a:99999']", "upstream[0].urls[0]", "http://a:99999"),
        ("[[upstream]]\nurls = 'http://a'\npath = 'v1'", "upstream[0].path", "v1"),
        ("[[mint]]\nurl = 'http://a'\nunits = ['eur']", "mint[0].units[0]", "eur"),
        ("[[mint]]\nurl = 'http://a'\nceiling = '5'", "mint[0].ceiling", "5"),
        ("[[mint]]\nurl = 'http://a'\nceiling = '-5 sat'", "mint[0].ceiling", "-5 sat"),
        ("[[mint]]\nurl = 'http://a'\nceiling = '0.1 msat'", "mint[0].ceiling", "0.1 msat"),
        ("[[mint]]\nurl = 'http://a'\nrequire_dleq = 1", "mint[0].require_dleq", 1),
        ("[ecash]\nchange = ['same', 'same']", "ecash.change", "a list of 2"),
        ("[ecash]\nforeign = 'maybe'", "ecash.foreign", "maybe"),
        ("[rates]\nbtc_usd = 97000.5", "rates.btc_usd", 97000.5),
        ("[rates]\nbtc_usd = '0'", "rates.btc_usd", "0"),
        ("price = [1]", "price[0]", 1),
        ("[log]\nlevel = 'loud'", "log.level", "loud"),
    ],
)
def test_a_wrong_setting_names_its_key_and_what_was_found(
    text: str, key: str, found: object, tmp_path: Path
) -> None:
    error = refusal(text, tmp_path)
    assert error.key == key
    assert error.found == found
    assert error.allowed


def test_a_wrong_setting_says_what_is_allowed(tmp_path: Path) -> None:
    error = refusal("[log]\nlevel = 'loud'", tmp_path)
    assert str(error) == (
        'setting log.level: found \'loud\', allowed: one of "debug", "info", "warning", "error"'
    )


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("[gatway]", "gatway", "did you mean gateway?"),
        ("[gateway]\nlistn = 'x'", "gateway.listn", "did you mean listen?"),
        ("[[mint]]\nurl='http://a'\ncieling = 'x'", "mint[0].cieling", "did you mean ceiling?"),
        ("[log]\nxyz = 1", "log.xyz", "one of format, level"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_one(
    text: str, key: str, hint: str, tmp_path: Path
) -> None:
    error = refusal(text, tmp_path)
    assert (error.key, error.allowed) == (key, hint)


def test_the_same_mint_or_path_twice_is_an_error(tmp_path: Path) -> None:
    mint = "[[mint]]\nurl = 'http://a'\n"
    assert refusal(mint + mint.replace("a'", "a/'"), tmp_path).key == "mint.url"
    upstream = "[[upstream]]\nurls = 'http://a'\n"
    assert refusal(upstream * 2, tmp_path).key == "upstream.path"


@pytest.mark.parametrize("text", ["[", "a = 1\na = 2", "x" * 2_000_000, "\ud800"])
def test_a_file_that_is_no_toml_is_an_error_with_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "farebox.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidSettings, match=re.escape(str(path))):
        load_settings(path, {}, {})


def test_a_missing_file_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="farebox init"):
        load_settings(tmp_path / "none.toml", {}, {})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    settings = load(
        "[gateway]\nlisten = 'a:1'\nqueue_max = 1\n[[mint]]\nurl = 'http://a'\n",
        tmp_path,
        FAREBOX_GATEWAY__LISTEN="b:2",
        FAREBOX_GATEWAY__QUEUE_MAX="2",
        FAREBOX_GATEWAY__STOP_GRACE_S="0.5",
        FAREBOX_MINT__0__CEILING="7 sat",
        FAREBOX_MINT__0__REQUIRE_DLEQ="true",
        FAREBOX_MINT__1__URL="http://b",
        FAREBOX_UPSTREAM='[{ urls = ["http://u"] }]',
        FAREBOX_UPSTREAM__0__HEADERS__AUTHORIZATION="Bearer x",
        FAREBOX_ECASH__CHANGE='["credit"]',
    )
    assert settings.gateway.listen == Address("b", 2)
    assert settings.gateway.queue_max == 2
    assert settings.gateway.stop_grace_s == 0.5
    assert [mint.url for mint in settings.mints] == ["http://a", "http://b"]
    assert settings.mints[0].ceiling_msat == 7000
    assert settings.mints[0].require_dleq
    assert settings.upstreams[0].headers["authorization"] == Secret("Bearer x")
    assert settings.ecash.change == (ChangePolicy.CREDIT,)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("FAREBOX_GATWAY__LISTEN", "did you mean gateway?"),
        ("FAREBOX_GATEWAY__LISTN", "did you mean listen?"),
        ("FAREBOX_GATEWAY_LISTEN", "did you mean gateway?"),
    ],
)
def test_an_unknown_variable_is_an_error_with_the_nearest_one(
    name: str, hint: str, tmp_path: Path
) -> None:
    error = refusal("", tmp_path, **{name: "a:1"})
    assert (error.key, error.allowed) == (name, hint)


def test_variables_that_are_no_settings_are_left_alone(tmp_path: Path) -> None:
    load(
        "",
        tmp_path,
        FAREBOX_REQUIRE_PEERS="1",
        FAREBOX_TEST_STOP_AT="x",
        FAREBOX_SERVICE_HOST="10.0.0.1",
        FAREBOX_PORT_8080_TCP="tcp://10.0.0.1:8080",
    )


def test_a_variable_cannot_smuggle_in_a_second_key(tmp_path: Path) -> None:
    error = refusal("", tmp_path, FAREBOX_GATEWAY__QUEUE_MAX="1\nother = 2")
    assert error.key == "gateway.queue_max"


def test_any_value_may_come_from_a_file_that_a_variable_names(tmp_path: Path) -> None:
    secret = tmp_path / "listen"
    secret.write_text("c:3\n")
    secret.chmod(0o600)
    settings = load("", tmp_path, FAREBOX_GATEWAY__LISTEN_FILE=str(secret))
    assert settings.gateway.listen == Address("c", 3)


def test_overrides_win_over_everything() -> None:
    settings = load_settings(
        None,
        {"FAREBOX_GATEWAY__LISTEN": "a:1", "FAREBOX_DATA_DIR": "env"},
        {
            "gateway.listen": "b:2",
            "mint": [{"url": "http://m"}],
            "upstream.0.urls": "http://u",
            "data_dir": "here",
        },
    )
    assert settings.gateway.listen == Address("b", 2)
    assert settings.mints[0].url == "http://m"
    assert settings.upstreams[0].urls == ("http://u",)
    assert settings.data_dir == Path("here").absolute()


def test_paths_start_where_they_were_written(tmp_path: Path) -> None:
    assert load("data_dir = 'x'", tmp_path).data_dir == tmp_path / "x"
    here = load("data_dir = 'x'", tmp_path, FAREBOX_DATA_DIR="y").data_dir
    assert here == Path("y").absolute()


def test_the_settings_file_is_the_one_asked_for_or_the_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_settings(None, {}) is None
    (tmp_path / "farebox.toml").touch()
    assert find_settings(None, {}) == Path("farebox.toml")
    assert find_settings(None, {"FAREBOX_SETTINGS": "other"}) == Path("other")
    assert find_settings(Path("mine"), {"FAREBOX_SETTINGS": "other"}) == Path("mine")


def header(value: str) -> str:
    return f"[[upstream]]\nurls = 'http://u'\nheaders = {{ Authorization = {value} }}\n"


def test_headers_may_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("two\n")
    (tmp_path / "key").chmod(0o400)
    one = load(header('{ env = "KEY", prefix = "Bearer " }'), tmp_path, KEY="one")
    assert one.upstreams[0].headers["Authorization"].reveal() == "Bearer one"
    two = load(header('{ file = "key" }'), tmp_path)
    assert two.upstreams[0].headers["Authorization"].reveal() == "two"


@pytest.mark.parametrize(
    "text",
    [
        header('"Bearer hunter2"'),
        header("['hunter2']"),
        header('{ env = "KEY", extra = "hunter2" }'),
        header('{ env = "EVIL" }'),
        "[upstream]\nheaders = { Authorization = 'hunter2' }",
        "[[upstream]]\nurls = 'http://u'\nheaders = 'hunter2'",
        "[[upstream]]\nurls = ['http://user:hunter2@host']",
        "[gateway]\npublic_url = 'http://user:hunter2@host'",
    ],
)
def test_no_error_shows_a_secret(text: str, tmp_path: Path) -> None:
    error = refusal(text, tmp_path, EVIL="hunter2\r\nX-Injected: 1")
    assert "hunter2" not in str(error)
    assert "hunter2" not in repr(error)
    assert error.__cause__ is None


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    settings = load(header('{ env = "KEY" }'), tmp_path, KEY="hunter2")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.upstreams[0].headers)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o700])
def test_a_secret_file_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2")
    path.chmod(mode)
    with pytest.raises(InvalidSettings, match=f"{mode:04o}.*chmod 600") as caught:
        read_secret_file(path, "a.key")
    assert caught.value.key == "a.key"


def test_a_secret_file_must_be_a_readable_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("none", "pipe", "."):
        with pytest.raises(InvalidSettings):
            read_secret_file(tmp_path / name, "a.key")


def test_a_secret_file_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(InvalidSettings, match="somebody else"):
        read_secret_file(path, "a.key")


def test_a_new_root_key_is_random_private_and_never_replaced(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    path = create_root_key(data)
    root = read_root_key(data, {})
    assert path == data / "root.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert data.stat().st_mode & 0o777 == 0o700
    assert create_root_key(data) == path
    assert read_root_key(data, {}) == root
    assert os.listdir(data) == ["root.key"]
    create_root_key(tmp_path / "other")
    assert read_root_key(tmp_path / "other", {}) != root


def test_the_root_key_may_come_from_the_environment(tmp_path: Path) -> None:
    assert read_root_key(tmp_path, {"FAREBOX_ROOT_KEY": "ab" * 32}) == b"\xab" * 32
    path = tmp_path / "key"
    path.write_text("cd" * 32)
    path.chmod(0o600)
    assert read_root_key(tmp_path, {"FAREBOX_ROOT_KEY_FILE": str(path)}) == b"\xcd" * 32


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "hunter2" * 9])
def test_a_malformed_root_key_is_refused_and_not_shown(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings) as caught:
        read_root_key(tmp_path, {"FAREBOX_ROOT_KEY": text})
    assert caught.value.key == "root_key"
    assert not text or text not in str(caught.value)


def test_a_missing_root_key_is_an_error_never_a_default(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="farebox init"):
        read_root_key(tmp_path, {})


def test_the_example_file_is_the_rendered_one() -> None:
    assert EXAMPLE.read_text() == render_default_settings(), "run `make example`"


def test_the_rendered_file_decides_nothing(tmp_path: Path) -> None:
    plain = load_settings(None, {}, {"data_dir": str(tmp_path / "farebox-data")})
    assert load(render_default_settings(), tmp_path) == plain


def test_the_rendered_file_shows_every_setting_at_its_default(tmp_path: Path) -> None:
    shown = uncommented(render_default_settings())
    shown = re.sub(r"\nwatch = .*", "", shown)  # a wallet that signs has no need of it
    for name in re.findall(r'\{ file = "([^"]+)" \}', shown):
        (tmp_path / name).write_text("00ff")
        (tmp_path / name).chmod(0o600)
    named = dict.fromkeys(re.findall(r'\{ env = "(\w+)" ', shown), "https://node.test")
    settings = load(shown, tmp_path, **named)
    plain = load_settings(None, {}, {"data_dir": str(tmp_path / "farebox-data")})
    assert settings.database == plain.database
    assert settings.ecash == plain.ecash
    assert settings.accounts == plain.accounts
    assert settings.log == plain.log
    optional = {"url": None, "key": None, "invoice_key": None, "certificate": None}
    assert replace(settings.lightning, **optional) == plain.lightning  # type: ignore[arg-type]
    assert (len(settings.upstreams), len(settings.mints), len(settings.prices)) == (1, 1, 1)


def test_what_was_chosen_is_written_as_given(tmp_path: Path) -> None:
    chosen = {
        "data_dir": 'odd "\\\x7f\tname',
        "gateway": {"listen": "[::1]:9", "stop_grace_s": 0.25},
        "upstream": [{"urls": ["http://a", "http://b"], "headers": {"A": {"env": "K"}}}],
        "mint": [{"url": "http://m", "require_dleq": True}, {"url": "http://n"}],
        "price": [{"per_request": "10 sat", "when": {"odd key": [1]}}],
    }
    tree = tomllib.loads(render_settings(chosen))
    assert {key: value for key, value in tree.items() if value} == chosen
    settings = load(render_settings(chosen), tmp_path, K="v")
    assert settings.gateway.listen == Address("::1", 9)
    assert [mint.url for mint in settings.mints] == ["http://m", "http://n"]


# ── the database ─────────────────────────────────────────────────────────────────────────────────

POSTGRES = "postgresql://farebox:s3cr3t@db.test/books"


def test_the_database_has_a_name_of_its_own_in_the_environment(tmp_path: Path) -> None:
    settings = load("", tmp_path, FAREBOX_DATABASE=POSTGRES)
    assert settings.database_path is None
    assert settings.database.postgres is not None
    assert settings.database.postgres.reveal() == POSTGRES
    assert "s3cr3t" not in repr(settings)


def test_the_database_may_be_told_by_a_private_file(tmp_path: Path) -> None:
    secret = tmp_path / "database"
    secret.write_text(POSTGRES + "\n")
    secret.chmod(0o600)
    settings = load("", tmp_path, FAREBOX_DATABASE_FILE=str(secret))
    assert settings.database.postgres is not None
    assert settings.database.postgres.reveal() == POSTGRES


@pytest.mark.parametrize("url", [POSTGRES, "postgresql://db/books?password=s3cr3t"])
def test_a_database_password_does_not_belong_in_the_file(url: str, tmp_path: Path) -> None:
    error = refusal(f'[database]\nurl = "{url}"', tmp_path)
    assert error.key == "database.url"
    assert "s3cr3t" not in str(error)
    assert "FAREBOX_DATABASE" in str(error)
    load('[database]\nurl = "postgresql://farebox@db.test/books"', tmp_path)


def test_a_wrong_database_address_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load("", tmp_path, FAREBOX_DATABASE="host=db password=s3cr3t")
    assert "s3cr3t" not in str(caught.value)
