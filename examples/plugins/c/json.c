#include "json.h"

#include <stdint.h>
#include <string.h>

static void skip_space(struct json *text) {
  while (text->at < text->end && strchr(" \t\r\n", *text->at) != NULL) text->at++;
}

static bool skip(struct json *text, char expected) {
  skip_space(text);
  if (text->at == text->end || *text->at != expected) return false;
  text->at++;
  return true;
}

/* From a quote to behind the one that ends the string. */
static void skip_string(struct json *text) {
  text->at++;
  while (text->at < text->end && *text->at != '"') text->at += *text->at == '\\' ? 2 : 1;
  if (text->at < text->end) text->at++;
  if (text->at > text->end) text->at = text->end;
}

static struct json take_value(struct json *text) {
  skip_space(text);
  struct json value = {text->at, text->at};
  size_t depth = 0;
  while (text->at < text->end) {
    char next = *text->at;
    if (depth == 0 && (next == ',' || next == ']' || next == '}')) break;
    if (next == '"') {
      skip_string(text);
      continue;
    }
    if (next == '{' || next == '[') depth++;
    if (next == '}' || next == ']') depth--;
    text->at++;
  }
  value.end = text->at;
  return value;
}

bool json_is_string(struct json value) { return value.at < value.end && *value.at == '"'; }

static uint32_t hex(const char *digits) {
  uint32_t value = 0;
  for (int place = 0; place < 4; place++) {
    char digit = digits[place];
    value = value << 4 | (uint32_t)(digit <= '9' ? digit - '0' : (digit | 32) - 'a' + 10);
  }
  return value;
}

static size_t encode(uint32_t point, char *to) {
  static const unsigned char leads[] = {0, 0, 0xc0, 0xe0, 0xf0};
  size_t size = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  for (size_t place = size - 1; place > 0; place--) {
    to[place] = (char)(0x80 | (point & 63));
    point >>= 6;
  }
  to[0] = (char)(leads[size] | point);
  return size;
}

/* One character of a string, unescaped; none at its end. */
static size_t next_character(struct json *string, char to[4]) {
  if (string->at >= string->end || *string->at == '"') return 0;
  if (*string->at != '\\') {
    to[0] = *string->at++;
    return 1;
  }
  if (string->end - string->at < 2) return 0;
  char escaped = string->at[1];
  if (escaped != 'u') {
    const char *from = "bfnrt", *place = strchr(from, escaped);
    to[0] = place != NULL ? "\b\f\n\r\t"[place - from] : escaped;
    string->at += 2;
    return 1;
  }
  if (string->end - string->at < 6) return 0;
  uint32_t point = hex(string->at + 2);
  string->at += 6;
  bool is_pair = point >> 10 == 0xd800 >> 10 && string->end - string->at >= 6 && string->at[0] == '\\' && string->at[1] == 'u';
  if (is_pair) {
    point = 0x10000 + ((point & 0x3ff) << 10) + (hex(string->at + 2) & 0x3ff);
    string->at += 6;
  }
  return encode(point, to);
}

size_t json_unescape(struct json string, char *to) {
  size_t length = 0, size;
  string.at++;
  while ((size = next_character(&string, to + length)) > 0) length += size;
  return length;
}

static bool is_named(struct json string, const char *name, size_t length) {
  char character[4];
  size_t size;
  string.at++;
  while ((size = next_character(&string, character)) > 0) {
    if (size > length || memcmp(character, name, size) != 0) return false;
    name += size;
    length -= size;
  }
  return length == 0;
}

bool json_member(struct json object, const char *name, size_t length, struct json *value) {
  bool found = false;
  if (!skip(&object, '{')) return false;
  for (;;) {
    skip_space(&object);
    if (!json_is_string(object)) return found;
    struct json key = {object.at, object.at};
    skip_string(&object);
    key.end = object.at;
    if (!skip(&object, ':')) return found;
    struct json member = take_value(&object);
    if (is_named(key, name, length)) {
      *value = member;
      found = true;
    }
    if (!skip(&object, ',')) return found;
  }
}

bool json_next(struct json *array, struct json *value) {
  if (!skip(array, '[') && !skip(array, ',')) return false;
  *value = take_value(array);
  return value->at < value->end;
}
