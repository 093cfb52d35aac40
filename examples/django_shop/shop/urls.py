"""The addresses of the shop."""

from __future__ import annotations

from django.urls import path

from shop import views

urlpatterns = [path("order", views.order), path("receipt/<str:result_id>", views.receipt)]
