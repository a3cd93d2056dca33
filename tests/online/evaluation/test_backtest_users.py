"""A backtest with a file of users: a run beside it without them, and figures of users' first three clicks."""

import csv
import json

from online.evaluation.town import Town


def test_users_of_a_file_are_known_and_compared(tmp_path, command, monkeypatch):
    for name, value in {"WIDTH": "8", "HEADS": "2", "LAYERS": "lsh", "REFORMER": "false"}.items():
        monkeypatch.setenv(f"NEXTCLICK_{name}", value)
    town = Town(users=300, seed=2)
    with (tmp_path / "clicks.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "timestamp"])
        rows.writerows([one.user_id, one.item_id, one.timestamp] for one in town.clicks(1_500))
    with (tmp_path / "users.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer", "district", "newsletter"])
        rows.writerows([one.user_id, *one.attributes.values()] for one in town.user_records())
    found = tmp_path / "figures.json"
    arguments = ["backtest", str(tmp_path / "clicks.csv"), "--users", str(tmp_path / "users.csv"), "--json", str(found)]
    methods = "nextclick,nextclick-without-users,popular"
    code, shown, told = command(*arguments, "--methods", methods, "--jobs", "1")
    assert code == 0, told
    assert "first 3 of a user" in shown
    assert "users who click are in it" in shown.replace("\n", " ")
    figures = json.loads(found.read_text())
    assert list(figures["methods"]) == methods.split(",")
    assert figures["users_file"]["users"] == 300
    assert figures["users_file"]["clicking_users_known"] == figures["users"]
    early = figures["first_3_of_user"]
    assert 0 < early["scored"] < figures["scored"]
    assert early["methods"]["nextclick"] != early["methods"]["nextclick-without-users"]
    code, _, told = command(*arguments[:2], "--users-columns", "id=customer")
    assert code == 2
    assert "--users" in told
