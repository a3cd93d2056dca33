"""A shop with Django in one file: the shelf on its page is this visitor's list, and changes after a click.

    pip install 'nextclick[client]' django
    NEXTCLICK_API_READ_ONLY=false nextclick serve &
    DEBUG=1 python docs/examples/django_shop.py runserver 8080

`NEXTCLICK_URL` and `NEXTCLICK_KEY` name the API and its key, `NEXTCLICK_REDIS_URL` a Redis for when the API is away.
"""

import os
import secrets
import sys
import uuid

from django.conf import settings

if not settings.configured:
    settings.configure(
        DEBUG=bool(os.environ.get("DEBUG")),
        SECRET_KEY=os.environ.get("SECRET_KEY") or secrets.token_urlsafe(32),
        ALLOWED_HOSTS=["127.0.0.1", "localhost", "testserver"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    )

from django.core.handlers.wsgi import WSGIHandler
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template import RequestContext, Template
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

from online.client import Client

ITEMS = {
    "kettle": ("🫖", "Copper kettle"), "tea": ("🍵", "Green tea"), "cup": ("☕", "Stoneware cup"),
    "honey": ("🍯", "Heather honey"), "bread": ("🍞", "Rye bread"), "knife": ("🔪", "Bread knife"),
    "lamp": ("💡", "Reading lamp"), "book": ("📖", "A long novel"), "plant": ("🪴", "Small fern"),
}  # fmt: skip
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The shop</title><style>
:root { color-scheme: light dark; font: 17px/1.5 system-ui, sans-serif }
main { max-width: 46rem; margin: 8vh auto; padding: 0 1.2rem }
h1 { font-weight: 600; letter-spacing: -.02em } small { opacity: .6 }
form { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem }
button { font: inherit; padding: 1.2rem .6rem; border: 1px solid #8884; border-radius: .9rem; background: #8881 }
button:hover { border-color: #d60; cursor: pointer } button span { display: block; font-size: 2.2rem }
</style><main><h1>For you</h1><form method="post">{% csrf_token %}
{% for item, picture, title in shown %}
<button formaction="{% url 'click' item %}"><span>{{ picture }}</span>{{ title }}</button>{% endfor %}
</form><p><small>source: {{ source }}</small></p></main></html>"""

#: One client for the whole life of the process: it keeps its connections, and threads share it.
client = Client(
    os.environ.get("NEXTCLICK_URL", "http://127.0.0.1:8000"),
    api_key=os.environ.get("NEXTCLICK_KEY"),
    redis_url=os.environ.get("NEXTCLICK_REDIS_URL"),
    default=ITEMS,
)


@require_GET
def shelf(request: HttpRequest) -> HttpResponse:
    """The page. It needs no error handling: without the API there is still a list."""
    visitor = request.COOKIES.get("visitor") or uuid.uuid4().hex
    found = client.recommend(visitor, 6, fresh=True)
    shown = [(item, *ITEMS[item]) for item in found.items if item in ITEMS]
    page = HttpResponse(Template(PAGE).render(RequestContext(request, {"shown": shown, "source": found.source})))
    page.set_cookie("visitor", visitor, httponly=True, samesite="Lax", max_age=365 * 86_400)
    return page


@require_POST
def click(request: HttpRequest, item: str) -> HttpResponse:
    """A click on an item, then the page again."""
    if item not in ITEMS:
        raise Http404
    if visitor := request.COOKIES.get("visitor"):
        client.click(visitor, item)
    return HttpResponseRedirect("/")


urlpatterns = [path("", shelf, name="shelf"), path("click/<str:item>", click, name="click")]
application: WSGIHandler = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
