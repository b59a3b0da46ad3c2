/* Reads JSON text that is known to be valid, as the host has checked it: finds values, copies nothing, never looks beyond the end. */

#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>

/* A value's text. */
struct json {
  const char *at;
  const char *end;
};

/* The member of an object; the last one when there are several, as most readers do. */
bool json_member(struct json object, const char *name, size_t length, struct json *value);

/* The next element of an array, which is moved past it; starts and ends with the array's own text. */
bool json_next(struct json *array, struct json *value);

/* Whether the value is a string. */
bool json_is_string(struct json value);

/* Writes a string without its quotes and escapes; never longer than its text. Gives the length. */
size_t json_unescape(struct json string, char *to);

#endif
