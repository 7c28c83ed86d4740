import pytest

from fmad_dist.base.console import warn
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.base.secrets import without_secrets


@pytest.mark.parametrize(
    "text",
    [
        "GET /x?X-Amz-Signature=abcSECRETdef&X-Amz-Credential=SECRET failed",
        "<AWSAccessKeyId>SECRET</AWSAccessKeyId>",
        'aws_secret_access_key = "SECRET"',
        "AWS_SESSION_TOKEN=SECRET",
        "could not connect to http://user:SECRET@host/path",
        "{'password': 'SECRET'}",
        "abfs://c@a.net/x?sv=2024&sig=SECRET%3D",
        "https://host/x.png?token=SECRET&y=1",
        "https://SECRET@host/x",
        "postgresql+psycopg2://me:SECRET@db/mlflow",
        "http://me:p@SECRET@host:5000/x",
        "http://me:a/SECRET@host:5000",
    ],
)
def test_errors_do_not_quote_secrets(text: str) -> None:
    assert "SECRET" not in without_secrets(text)
    assert "SECRET" not in first_line(RuntimeError(text))
    assert "***" in without_secrets(text)


def test_ordinary_sentences_stay() -> None:
    for text in (
        "the key a/b=c at s3://bucket/x@v1 holds 3 tokens; secretary",
        "abfs://container@account.dfs.core.windows.net/x at https://host:9000/a@b?page=2 by sftp://me@host/x",
        "sqlite:////home/me@work/runs/mlflow.db",
    ):
        assert without_secrets(text) == text
        assert str(UserError(text)) == text


def test_no_sentence_has_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert str(UserError("http://me:SECRET@host: away")) == "http://***@host: away"
    warn("http://me:SECRET@host: away")
    assert capsys.readouterr().err == "warning: http://***@host: away\n"
