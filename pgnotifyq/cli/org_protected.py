"""What `doctor` says of the application's tables that `protect` has put its policies on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.ledger.doctor import Facts

Said = tuple[str, str, str]  # verdict, what was found, what to do


def judge_protected(tables: list[Facts]) -> Iterator[Said]:
    """Tell which tables are protected, and each way past the policies."""
    for each in tables:
        table = each["table_name"]
        found = list(_ways_past(each))
        yield from found
        if not found:
            yield "ok", f"table {table} is protected by {each['column_name']}", ""


def _ways_past(each: Facts) -> Iterator[Said]:
    table, column = each["table_name"], each["column_name"]
    alter = f"as its owner: alter table {table}"
    if not each["is_on"]:
        yield "fail", f"row security of table {table} is off: its policies do nothing", f"{alter} enable row level security"
    if not each["is_forced"]:
        yield "warn", f"row security of table {table} does not bind its owner", f"{alter} force row level security"
    if each["exempt_owner"]:
        yield (
            "warn",
            f"table {table} belongs to {each['exempt_owner']}, which is exempt from row security",
            f"whoever connects as that role sees all tenants; {alter} owner to a lesser role",
        )
    if each["exempt_roles"]:
        yield (
            "warn",
            f"table {table} can be read by {each['exempt_roles']}, exempt from row security",
            "take the right away, or: alter role ... nobypassrls",
        )
    if each["open_views"]:
        yield (
            "fail",
            f"views show all tenants' rows of table {table}: {each['open_views']}",
            "of a view: alter view ... set (security_invoker = true); of a materialized view: take the tenants' right away",
        )
    if each["bare_partitions"]:
        yield (
            "fail",
            f"partitions of table {table} are not protected: {each['bare_partitions']}",
            f"they came later: python -m pgnotifyq protect {table} {column}",
        )
    if each["may_truncate"]:
        yield "fail", f"{each['may_truncate']} may truncate table {table}", "row security knows no truncate: take the right away"
    if each["new_roles"]:
        yield (
            "warn",
            f"table {table} was protected before {each['new_roles']} came: the tenants' queries there use no index",
            f"python -m pgnotifyq protect {table} {column}",
        )
    if not each["is_granted"]:
        yield (
            "warn",
            f"table {table} is protected, and tenants' transactions may not read it",
            f"python -m pgnotifyq protect {table} {column} --rights 'select, insert, update, delete'",
        )
