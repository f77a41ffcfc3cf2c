"""Prefect flows over the library, installed as `ovrs.flows`. Nothing else imports Prefect."""
