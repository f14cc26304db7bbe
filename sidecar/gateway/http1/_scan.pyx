# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""The usual head, read in one pass over its bytes; compiled, and optional.

``Scanner`` answers the parts of what ``HeadParser`` would for heads that are plainly valid, and None for all others:
incomplete or invalid ones, repeated fields, expectations, upgrades, odd spellings. Those are left to ``framing``, which
alone knows what is wrong with a message. So nothing here refuses anything, and a head that is read here is read as there;
the tests hold both against each other (tests/conformance). The parts are a tuple (``core.RequestParts``), of which
``framing`` makes the head: an object of that module is made, and later read, faster there than from here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from sidecar.gateway.http1.body import BodyKind

cdef enum:
    BUCKETS = 256
    DROPPED_MAX = 16
    HOST_NAME_MAX = 255

cdef object _NONE = BodyKind.NONE
cdef object _LENGTH = BodyKind.LENGTH
cdef object _CHUNKED = BodyKind.CHUNKED
cdef object _UNTIL_CLOSE = BodyKind.UNTIL_CLOSE
cdef bytes _EMPTY = b""

# Classes of octets, by the expressions in grammar.py.
cdef unsigned char TCHAR = 1
cdef unsigned char VALUE = 2
cdef unsigned char TARGET = 4
cdef unsigned char HOST = 8
cdef unsigned char FOLDS = 16  # of TCHAR: what is neither letter nor digit nor hyphen, and may imitate one
cdef unsigned char[256] octet
cdef unsigned char[256] lower


cdef void _fill_tables() noexcept:
    cdef int c
    for c in range(256):
        lower[c] = c + 32 if 65 <= c <= 90 else c
        octet[c] = 0
        if 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or (c < 128 and chr(c) in "!#$%&'*+-.^_`|~"):
            octet[c] |= TCHAR
            if not (48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c == 45):
                octet[c] |= FOLDS
        if c == 9 or 32 <= c <= 126 or c >= 128:
            octet[c] |= VALUE
        if c == 33 or c == 34 or 36 <= c <= 126:
            octet[c] |= TARGET
        if 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or (c < 128 and chr(c) in "._~-"):
            octet[c] |= HOST


_fill_tables()

# What the scanner itself has to know a field for.
cdef enum Role:
    PLAIN = 0
    HOST_FIELD = 1
    CONTENT_LENGTH = 2
    TRANSFER_ENCODING = 3
    CONNECTION = 4
    ODD = 5
    STRIPPED = 6  # not forwarded, and nobody wants its value

cdef dict _ROLES = {
    b"host": HOST_FIELD, b"content-length": CONTENT_LENGTH, b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION, b"expect": ODD, b"te": ODD,
}

cdef tuple _METHODS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS")


cdef struct Known:
    const unsigned char *name
    Py_ssize_t size
    int next
    int role
    bint dropped
    bint mark


cdef class Scanner:
    """Made once per kind of peer, like the ``HeadParser`` that owns it.

    Args:
        fields: lower-case names whose values are wanted, with whether their lines are dropped.
        method_max, target_max, head_max: bytes.
        fields_max: field lines.
        body_max: bytes; None for no limit.
        like: ``NamePatterns`` of lines that are dropped, unless their names are in ``fields``.
        marks: names of ``fields``; whether one of them came is the last of the parts.
    """

    cdef Known *_known
    cdef int _count
    cdef int[BUCKETS] _bucket
    cdef tuple _names, _beginnings
    cdef bint[256] _begins  # whether one of the beginnings has this first octet
    cdef Py_ssize_t _method_max, _target_max, _head_max, _body_max
    cdef int _fields_max
    cdef bytes _host
    # What the field section said, between `_section` and whoever called it.
    cdef bytes _host_seen, _block
    cdef dict _fields
    cdef int _close, _chunked
    cdef bint _length_is_odd, _marked
    cdef Py_ssize_t _length

    def __cinit__(self, dict fields, Py_ssize_t method_max, Py_ssize_t target_max, Py_ssize_t head_max, int fields_max,
                  body_max, like, marks):
        cdef int at, slot
        cdef bytes name
        self._names = tuple(fields) + tuple(name for name in like.whole if name not in fields)
        self._beginnings = like.beginnings
        for slot in range(256):
            self._begins[slot] = False
        for name in self._beginnings:
            self._begins[name[0]] = True
        self._count = len(self._names)
        self._known = <Known *>malloc(max(1, self._count) * sizeof(Known))
        if self._known == NULL:
            raise MemoryError
        for slot in range(BUCKETS):
            self._bucket[slot] = -1
        for at in range(self._count):
            name = self._names[at]
            self._known[at].name = <const unsigned char *>PyBytes_AS_STRING(name)
            self._known[at].size = PyBytes_GET_SIZE(name)
            self._known[at].role = _ROLES.get(name, PLAIN) if name in fields else STRIPPED
            self._known[at].dropped = fields.get(name, True)
            self._known[at].mark = name in marks
            slot = _slot(self._known[at].name, self._known[at].size)
            self._known[at].next = self._bucket[slot]
            self._bucket[slot] = at
        self._method_max = method_max
        self._target_max = target_max
        self._head_max = head_max
        self._fields_max = fields_max
        self._body_max = -1 if body_max is None else body_max
        self._host = _EMPTY

    def __dealloc__(self):
        free(self._known)

    def request(self, bytes buf not None, Py_ssize_t start):
        """The parts of the head that begins at ``start`` and the position after it, or None."""
        cdef const unsigned char *base = <const unsigned char *>PyBytes_AS_STRING(buf)
        cdef const unsigned char *at = base + start
        cdef const unsigned char *stop = base + PyBytes_GET_SIZE(buf)
        cdef const unsigned char *begin = at
        cdef const unsigned char *target
        cdef const unsigned char *question = NULL
        cdef Py_ssize_t method_size, target_size
        cdef int minor
        cdef bytes method, whole, path, query, host
        cdef dict fields
        cdef object body
        cdef bint keep_alive
        if stop - at > self._head_max:
            stop = at + self._head_max
        while at < stop and 65 <= at[0] <= 90:
            at += 1
        method_size = at - begin
        if method_size == 0 or method_size > self._method_max or at + 1 >= stop or at[0] != 32 or at[1] != 47:
            return None
        at += 1
        target = at
        while at < stop and octet[at[0]] & TARGET:
            if at[0] == 63 and question == NULL:
                question = at
            at += 1
        target_size = at - target
        if target_size > self._target_max or stop - at < 13 or memcmp(at, b" HTTP/1.", 8) != 0:
            return None
        if not 48 <= at[8] <= 57 or at[9] != 13 or at[10] != 10:
            return None
        minor = at[8] != 48
        at = self._section(at + 11, stop)
        if at == NULL or (self._host_seen is None and minor == 1):
            return None
        if self._chunked and (self._length >= 0 or minor == 0):
            return None
        if self._body_max >= 0 and self._length > self._body_max:
            return None
        method = _method(begin, method_size)
        if method == b"TRACE" or method == b"CONNECT":
            return None
        whole = PyBytes_FromStringAndSize(<const char *>target, target_size)
        if question == NULL:
            path = whole
            query = _EMPTY
        else:
            path = PyBytes_FromStringAndSize(<const char *>target, question - target)
            query = PyBytes_FromStringAndSize(<const char *>question + 1, target + target_size - question - 1)
        host = _EMPTY if self._host_seen is None else self._host_seen
        body = _CHUNKED if self._chunked else (_LENGTH if self._length > 0 else _NONE)
        keep_alive = self._close != 1 if minor == 1 else self._close == -1
        fields = self._fields
        self._fields = None
        return (
            method, whole, path, query, host, minor, self._block, fields, body, self._length if self._length > 0 else 0,
            keep_alive, at - base, self._marked,
        )

    def response(self, bytes buf not None, Py_ssize_t start):
        """The same for the head of a response to anything but HEAD (``core.ResponseParts``)."""
        cdef const unsigned char *base = <const unsigned char *>PyBytes_AS_STRING(buf)
        cdef const unsigned char *at = base + start
        cdef const unsigned char *stop = base + PyBytes_GET_SIZE(buf)
        cdef const unsigned char *reason
        cdef int minor, status
        cdef Py_ssize_t reason_size
        cdef bytes phrase
        cdef dict fields
        cdef object body
        cdef bint keep_alive
        cdef Py_ssize_t length = 0
        if stop - at > self._head_max:
            stop = at + self._head_max
        if stop - at < 16 or memcmp(at, b"HTTP/1.", 7) != 0 or not 48 <= at[7] <= 57 or at[8] != 32:
            return None
        minor = at[7] != 48
        if not (50 <= at[9] <= 53 and 48 <= at[10] <= 57 and 48 <= at[11] <= 57 and at[12] == 32):
            return None
        status = (at[9] - 48) * 100 + (at[10] - 48) * 10 + at[11] - 48
        if status == 204 or status == 304:
            return None
        at += 13
        reason = at
        while at < stop and octet[at[0]] & VALUE:
            at += 1
        reason_size = at - reason
        if stop - at < 2 or at[0] != 13 or at[1] != 10:
            return None
        at = self._section(at + 2, stop)
        if at == NULL or (self._chunked and (self._length >= 0 or minor == 0)):
            return None
        if reason_size == 2 and reason[0] == 79 and reason[1] == 75:
            phrase = b"OK"
        else:
            phrase = PyBytes_FromStringAndSize(<const char *>reason, reason_size)
        keep_alive = self._close != 1 if minor == 1 else self._close == -1
        if self._chunked:
            body = _CHUNKED
        elif self._length > 0:
            body = _LENGTH
            length = self._length
        elif self._length == 0:
            body = _NONE
        else:
            body = _UNTIL_CLOSE
            keep_alive = False
        fields = self._fields
        self._fields = None
        return status, phrase, minor, self._block, fields, body, length, keep_alive, at - base, self._marked

    cdef const unsigned char *_section(self, const unsigned char *at, const unsigned char *stop) except? NULL:
        """Reads field lines up to and with the empty one. The position after it, or NULL: not the usual."""
        cdef const unsigned char *section = at
        cdef const unsigned char *line
        cdef const unsigned char *value
        cdef const unsigned char *end
        cdef const unsigned char *kept = at
        cdef Py_ssize_t[2 * DROPPED_MAX] runs  # where kept lines begin and end, from `section`
        cdef Py_ssize_t name_size, kept_bytes = 0
        cdef int lines = 0, known, dropped = 0, length_after = -1
        cdef unsigned char odd
        cdef bint drop
        cdef bytes text, length_line
        cdef char *out
        self._fields = {}
        self._host_seen = None
        self._close = 0
        self._chunked = 0
        self._length = -1
        self._length_is_odd = False
        self._marked = False
        while True:
            if stop - at < 2:
                return NULL
            if at[0] == 13:
                if at[1] != 10:
                    return NULL
                break
            lines += 1
            if lines > self._fields_max:
                return NULL
            line = at
            odd = 0
            while at < stop and octet[at[0]] & TCHAR:
                odd |= octet[at[0]]  # an underscore may imitate a hyphen
                at += 1
            name_size = at - line
            if name_size == 0 or odd & FOLDS or at >= stop or at[0] != 58:
                return NULL
            at += 1
            while at < stop and (at[0] == 32 or at[0] == 9):
                at += 1
            value = at
            while at < stop and octet[at[0]] & VALUE:
                at += 1
            if stop - at < 2 or at[0] != 13 or at[1] != 10:
                return NULL
            known = self._find(line, name_size)
            drop = False
            if known >= 0:
                drop = self._known[known].dropped
                if self._known[known].role != STRIPPED:
                    end = at
                    while end > value and ((end - 1)[0] == 32 or (end - 1)[0] == 9):
                        end -= 1
                    if not self._note(known, value, end - value, line, at):
                        return NULL
                    if self._known[known].mark:
                        self._marked = True
                    if self._length_is_odd and length_after < 0:
                        length_after = dropped
                        drop = True
            elif self._begins[lower[line[0]]]:
                drop = self._begun(line, name_size)
            if drop:
                if dropped >= DROPPED_MAX:
                    return NULL
                runs[2 * dropped] = kept - section
                runs[2 * dropped + 1] = line - section
                kept_bytes += line - kept
                dropped += 1
                kept = at + 2
            at += 2
        if dropped == 0:
            self._block = PyBytes_FromStringAndSize(<const char *>section, at - section)
        else:
            length_line = _EMPTY
            if length_after >= 0:
                length_line = b"Content-Length: %d\r\n" % self._length
            text = PyBytes_FromStringAndSize(NULL, kept_bytes + PyBytes_GET_SIZE(length_line) + (at - kept))
            out = PyBytes_AS_STRING(text)
            for lines in range(dropped):
                memcpy(out, section + runs[2 * lines], runs[2 * lines + 1] - runs[2 * lines])
                out += runs[2 * lines + 1] - runs[2 * lines]
                if lines == length_after:
                    memcpy(out, PyBytes_AS_STRING(length_line), PyBytes_GET_SIZE(length_line))
                    out += PyBytes_GET_SIZE(length_line)
            memcpy(out, kept, at - kept)
            self._block = text
        return at + 2

    cdef int _find(self, const unsigned char *name, Py_ssize_t size) noexcept:
        cdef int at = self._bucket[_slot(name, size)]
        cdef Py_ssize_t i
        while at >= 0:
            if self._known[at].size == size:
                for i in range(size):
                    if lower[name[i]] != self._known[at].name[i]:
                        break
                else:
                    return at
            at = self._known[at].next
        return -1

    cdef bint _begun(self, const unsigned char *name, Py_ssize_t size) noexcept:
        """Whether a name begins as those that are dropped for it."""
        cdef const unsigned char *beginning
        cdef Py_ssize_t i, beginning_size
        cdef bytes text
        for text in self._beginnings:
            beginning = <const unsigned char *>PyBytes_AS_STRING(text)
            beginning_size = PyBytes_GET_SIZE(text)
            if beginning_size > size:
                continue
            for i in range(beginning_size):
                if lower[name[i]] != beginning[i]:
                    break
            else:
                return True
        return False

    cdef bint _note(self, int known, const unsigned char *value, Py_ssize_t size, const unsigned char *line,
                    const unsigned char *line_end) except *:
        """Takes a wanted field's value. False: it is not the usual one."""
        cdef int role = self._known[known].role
        cdef object name = self._names[known]
        cdef Py_ssize_t i
        cdef Py_ssize_t length = 0
        cdef bytes text
        if name in self._fields:
            return False
        if role == HOST_FIELD:
            text = self._valid_host(value, size)
            if text is None:
                return False
            self._host_seen = text
        else:
            text = PyBytes_FromStringAndSize(<const char *>value, size)
            if role == CONTENT_LENGTH:
                if size == 0 or size > 18:
                    return False
                for i in range(size):
                    if not 48 <= value[i] <= 57:
                        return False
                    length = length * 10 + value[i] - 48
                self._length = length
                # It goes on as everybody reads it.
                self._length_is_odd = (
                    value - line != 16 or memcmp(line, b"Content-Length: ", 16) != 0 or line_end != value + size
                    or (value[0] == 48 and size > 1)
                )
            elif role == TRANSFER_ENCODING:
                if not _is(value, size, b"chunked", 7):
                    return False
                self._chunked = 1
            elif role == CONNECTION:
                if _is(value, size, b"keep-alive", 10):
                    self._close = -1
                elif _is(value, size, b"close", 5):
                    self._close = 1
                else:
                    return False
            elif role == ODD:
                return False
        self._fields[name] = text
        return True

    cdef bytes _valid_host(self, const unsigned char *value, Py_ssize_t size):
        cdef Py_ssize_t i = 0
        cdef Py_ssize_t digits
        if size == PyBytes_GET_SIZE(self._host) and memcmp(value, PyBytes_AS_STRING(self._host), size) == 0:
            return self._host if size else None
        while i < size and octet[value[i]] & HOST:
            i += 1
        if i == 0 or i > HOST_NAME_MAX:
            return None
        if i < size:
            digits = size - i - 1
            if value[i] != 58 or digits < 1 or digits > 5:
                return None
            i += 1
            while i < size:
                if not 48 <= value[i] <= 57:
                    return None
                i += 1
        self._host = PyBytes_FromStringAndSize(<const char *>value, size)
        return self._host


cdef int _slot(const unsigned char *name, Py_ssize_t size) noexcept:
    return (size * 31 + lower[name[0]] * 7 + lower[name[size - 1]]) & (BUCKETS - 1)


cdef bint _is(const unsigned char *value, Py_ssize_t size, const char *word, Py_ssize_t word_size) noexcept:
    cdef Py_ssize_t i
    if size != word_size:
        return False
    for i in range(size):
        if lower[value[i]] != <unsigned char>word[i]:
            return False
    return True


cdef bytes _method(const unsigned char *text, Py_ssize_t size):
    cdef bytes method
    for method in _METHODS:
        if PyBytes_GET_SIZE(method) == size and memcmp(PyBytes_AS_STRING(method), text, size) == 0:
            return method
    return PyBytes_FromStringAndSize(<const char *>text, size)
