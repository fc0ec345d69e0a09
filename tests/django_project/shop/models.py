"""Relations of every kind."""

from __future__ import annotations

from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models


class Customer(models.Model):
    name = models.CharField(max_length=50)

    def __str__(self):
        return self.name


class Profile(models.Model):
    customer = models.OneToOneField(Customer, models.CASCADE)


class Tag(models.Model):
    name = models.CharField(max_length=50, unique=True)


class Comment(models.Model):
    content_type = models.ForeignKey(ContentType, models.CASCADE)
    object_id = models.PositiveBigIntegerField()
    subject = GenericForeignKey()


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE, related_name="orders")
    label = models.ForeignKey(Tag, models.CASCADE, to_field="name", null=True)
    tags = models.ManyToManyField(Tag, related_name="tagged")
    watchers = models.ManyToManyField(Customer)
    comments = GenericRelation(Comment)
    total = models.IntegerField(default=0)
    note = models.TextField(default="")
    receipt = models.FileField(null=True)
