"""Django's own tasks, in a TestCase: enqueued, looked at, and run in its open transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.django.conftest import Project


def test_a_test_case(project: Project) -> None:
    """Blocking and async tasks see what the test wrote, and the test what they wrote; an error of a task comes out."""
    project.write(
        "shop/tests.py",
        """
        from django.contrib.auth.models import Group
        from django.db import connection
        from django.test import TestCase
        from pgnotifyq.django.registry import registry
        from pgnotifyq.testing import assert_enqueued, drain
        from shop import tasks

        class Tests(TestCase):
            def test_group(self):
                Group.objects.create(name="mine")
                tasks.make_group.enqueue("theirs")
                result = tasks.count_groups.enqueue()
                assert_enqueued("shop.tasks.make_group", args=["theirs"], connection=connection)
                assert_enqueued(tasks.make_group, args=["theirs"], count=1, connection=connection)
                self.assertEqual(drain(registry, connection=connection).outcomes, {"completed": 2})
                self.assertTrue(Group.objects.filter(name="theirs").exists())
                result.refresh()
                self.assertEqual(result.return_value, 3)

            def test_error(self):
                self.assertFalse(Group.objects.exists())
                tasks.fail.enqueue()
                with self.assertRaisesMessage(ValueError, "attempt 1"):
                    drain(registry, connection=connection)
                Group.objects.create(name="the transaction is usable")
        """,
    )
    told = project.manage("test", "--noinput")
    assert "Ran 2 tests" in told
